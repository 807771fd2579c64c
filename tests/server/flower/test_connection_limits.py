"""Who may stand at the public port without a key, and who goes when there are too many."""

import socket

from usfmae.server.flower.connection_limits import FULL, FULL_OF_ONE, MOST_OF_ONE_KEY, ConnectionLimits


def test_the_longest_waiting_stranger_goes_and_whoever_proved_a_key_stays():
    refused: list[tuple[int, str, str]] = []
    limits = ConnectionLimits(4, 2, lambda *refusal: refused.append(refusal))
    ends = [socket.socketpair() for _ in range(8)]
    peers = [("10.0.0.1", n) for n in range(4)] + [(f"10.0.1.{n}", 9) for n in range(4)]
    limits.enter(peers[0], ends[0][0])
    assert limits.prove(peers[0], b"a")
    for peer, (mine, _) in zip(peers[1:], ends[1:], strict=True):
        limits.enter(peer, mine)
    assert refused == [(429, FULL, "10.0.0.1")] * 3, "one of its own address, then the longest waiting of all"
    assert list(limits.strangers) == peers[4:] and peers[0] in limits.proved
    assert [theirs.recv(1) for _, theirs in ends[1:4]] == [b""] * 3
    assert limits.prove(peers[0], b"a") and limits.prove(peers[7], b"b")
    assert not limits.prove(peers[1], b"c"), "its call came too late: it must not be acted upon"
    limits.leave(peers[0])
    assert not limits.prove(peers[0], b"a")
    for pair in ends:
        for end in pair:
            end.close()


def test_a_hospital_holds_few_connections_however_many_it_opens():
    refused: list[tuple[int, str, str]] = []
    limits = ConnectionLimits(4, 4, lambda *refusal: refused.append(refusal))
    ends = [socket.socketpair() for _ in range(MOST_OF_ONE_KEY + 3)]
    limits.enter(("10.0.0.9", 1), ends[0][0])
    assert limits.prove(("10.0.0.9", 1), b"other")
    for number, (mine, _) in enumerate(ends[1:]):
        limits.enter(("10.0.0.1", number), mine)
        assert limits.prove(("10.0.0.1", number), b"greedy")
    assert refused == [(429, FULL_OF_ONE, "10.0.0.1")] * 2
    assert [theirs.recv(1) for _, theirs in ends[1:3]] == [b""] * 2, "its oldest go"
    assert ("10.0.0.9", 1) in limits.proved and len(limits.proved) == MOST_OF_ONE_KEY + 1
    for pair in ends:
        for end in pair:
            end.close()
