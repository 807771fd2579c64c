"""`usfmae-server status|page|report|release|leak|verify|audit`: what the rounds came to, and what a release gives away."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from usfmae.core.cli.shared_commands import audit_command
from usfmae.core.cli.shell import NewFile, as_json, overriding, print_json
from usfmae.server.cli import federation_directory

if TYPE_CHECKING:
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger


@click.command()
@federation_directory
@as_json
def status(directory: Path, as_json: bool) -> None:
    """Round, sites, verdicts, last checkpoint and its hash.

    Works whether or not the aggregator runs.

    \b
    usfmae-server status federation
    usfmae-server status federation --json
    """
    from usfmae.core.web.templating import ago
    from usfmae.server.layout import Layout
    from usfmae.server.status import status as read

    fields = read(Layout(directory))
    if as_json:
        print_json(fields)
        return
    click.echo(f"campaign    {fields['campaign']}")
    click.echo(f"running     {'at ' + fields['address'] if fields['running'] else 'no'}")
    planned = f" of {fields['planned']}" if fields["planned"] else ""
    opened = f", {fields['open_round']} open" if fields["open_round"] else ""
    click.echo(f"round       {fields['round']}{planned} committed{opened}")
    click.echo(f"waits       {fields['waits']}")
    click.echo(f"checkpoint  {fields['checkpoint']}")
    click.echo(f"hash        {fields['hash'] or '-'}")
    for verdict in fields["rounds"][-1]["verdicts"] if fields["rounds"] else ():
        counts = f"{verdict['images']:8d} images" if verdict["images"] else " " * 15
        click.echo(f"  {verdict['name']:24s} {verdict['verdict']:14s} {counts}  {verdict['detail']}")
    states = {site["name"]: site["seen"] for site in fields["sites"]}
    for name in fields["waiting_for"]:
        seen = states.get(name)
        click.echo(f"  {name:24s} {'no answer yet':14s} {' ' * 15}  seen {ago(seen)}")


@click.command()
@federation_directory
@click.option("--host", help="Address to listen on; default: page.host.")
@click.option("--port", type=int, help="Port to listen on; default: page.port, 8080 where that is 0.")
def page(directory: Path, host: str | None, port: int | None) -> None:
    """The coordinator's page alone, without an aggregator.

    For a federation that has ended, or that another process serves: rounds, sites, charts and downloads, until Ctrl-C.

    \b
    usfmae-server page federation --port 8080
    """
    from usfmae.server.dashboard.serve import page_served
    from usfmae.server.layout import Layout

    home = Layout(directory)
    settings = home.settings().page
    chosen = {"host": host or settings.host, "port": settings.port or 8080 if port is None else port}
    with page_served(home, settings.model_copy(update=chosen)) as address:
        click.echo(address)
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.pause()


@click.command()
@federation_directory
@click.option("--out", type=NewFile(), help="Default: DIRECTORY/campaign.html.")
@click.option("--gallery", is_flag=True, help="Add pictures of the public panel as the seed and some rounds read it.")
@as_json
def report(directory: Path, out: Path | None, gallery: bool, as_json: bool) -> None:
    """The campaign as one page to file.

    Sites, rounds, losses by round and organ, what was not admitted and why. With --gallery also one panel image of each
    organ, its hidden parts filled by the seed and by up to four rounds: for each a decoder is refitted, as in a round.

    \b
    usfmae-server report federation --out campaign.html
    usfmae-server report federation --gallery
    """
    from usfmae.core import audit
    from usfmae.core.errors import PolicyError
    from usfmae.core.report.campaign import write_campaign
    from usfmae.server.dashboard import view
    from usfmae.server.layout import Layout

    home = Layout(directory)
    federation = view.overview(home, view.History())
    try:
        chain = f"{audit.verify(home.audit)} entries, unbroken"
    except PolicyError as error:
        chain = str(error)
    values = {
        "campaign": federation.campaign,
        "sites": federation.sites,
        "rounds": federation.rounds[::-1],
        "not_admitted": federation.not_admitted,
        "declined": federation.declined,
        "chain": chain,
    }
    if as_json:
        print_json(values)
        return
    pictures = []
    if gallery:
        from usfmae.server.rounds.panel_gallery import gallery as drawn

        pictures = drawn(
            home, home.settings(), [one["number"] for one in federation.rounds[::-1] if one["state"] == "committed"]
        )
    file = out or directory / "campaign.html"
    write_campaign(file, values, [(one.number, one.organs) for one in pictures])
    click.echo(file)


@click.command()
@federation_directory
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder to write.")
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON results to put in the model card, as 'usfmae probe --json' prints them; repeatable.",
)
@click.option(
    "--leak",
    "leaks",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON of 'usfmae-client leak --model', for the model card and its limit; repeatable.",
)
@click.option("--round", "number", type=click.IntRange(min=1), help="This round, where it may go out.")
@overriding
@as_json
def release(
    directory: Path,
    out: Path,
    benchmarks: tuple[Path, ...],
    leaks: tuple[Path, ...],
    number: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """The best encoder under the budget, signed, with a card.

    Writes the best encoder under the forgetting budget, not the last one, to a signed folder with its model card and
    lineage. 'usfmae verify OUT --key coordinator.pub.pem' checks all of it offline.

    \b
    usfmae-server release federation --out release
    """
    from usfmae.server.layout import Layout
    from usfmae.server.releases.release import Reports
    from usfmae.server.releases.release import release as write

    home = Layout(directory)
    done = write(home, home.settings(overrides), out, Reports(benchmarks, leaks), number)
    print_json(done) if as_json else click.echo(f"{done['folder']}\n{done['why']}")


@click.command()
@click.argument("release", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--members", required=True, type=click.Path(path_type=Path, exists=True), help="Corpus trained on.")
@click.option("--others", required=True, type=click.Path(path_type=Path, exists=True), help="Corpus never trained on.")
@click.option("--before", type=click.Path(path_type=Path, exists=True), help="An earlier release, for site inference.")
@as_json
def leak(release: Path, members: Path, others: Path, before: Path | None, as_json: bool) -> None:
    """Attacks on membership of a release, with intervals.

    Two corpora of the same kind of pictures, one of them trained on. With --before, also which of the two the rounds
    between two releases learned from. Sites measure the same against their own held-out patients: usfmae-client leak.

    \b
    usfmae-server leak release --members replay --others panel --json
    """
    from usfmae.server.releases.leak_results import audit

    result = audit(release, members, others, before)
    if as_json:
        print_json(result)
        return
    for attack, sides in result["membership"].items():
        for side, one in sides.items():
            click.echo(f"{attack:10s} {side:9s} AUC {one['auc']:.3f} ({one['low']:.3f}-{one['high']:.3f})")


@click.command()
@federation_directory
@as_json
def verify(directory: Path, as_json: bool) -> None:
    """Check the audit log and the chain of checkpoints.

    Each round's checkpoint must have the hash that the ledger committed, and start from the round before.

    \b
    usfmae-server verify federation
    """
    from usfmae.core import audit
    from usfmae.core.errors import CheckpointError, PolicyError
    from usfmae.server.checkpoints import check
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger, RoundState

    home = Layout(directory)
    entries, checked, sealed, parent = audit.verify(home.audit), 0, 0, ""
    ledger = Ledger(home.ledger)
    ledger.check()
    for record in ledger.rounds():
        if parent and record.base != parent:
            raise PolicyError(f"round {record.number}", "does not start from the round before", "restore from a backup")
        parent = record.result or ""
        file = home.checkpoint(record.number)
        if record.state == RoundState.COMMITTED and file.exists():
            try:
                check(file, record.result or "")
            except CheckpointError as error:
                raise PolicyError(error.what, error.why, error.do) from None
            checked += 1
        if transcript := (record.summary or {}).get("transcript"):
            _check_sealed(home, record.number, transcript, ledger)
            sealed += 1
    report = {"audit_entries": entries, "checkpoints": checked, "sealed_rounds": sealed}
    if as_json:
        print_json(report)
    else:
        more = f", {sealed} sealed rounds" if sealed else ""
        click.echo(f"sound: {entries} audit entries, {checked} checkpoints{more}")


def _check_sealed(home: Layout, number: int, transcript: str, ledger: Ledger) -> None:
    """PolicyError where a sealed round's messages do not prove the verdicts that stand in the ledger."""
    from usfmae.core.errors import PolicyError
    from usfmae.core.federated.messages import VerdictCode
    from usfmae.server.rounds.sealing import verified

    proof = verified(home, number, transcript)
    verdicts = ledger.verdicts(number)
    merged = [site for site, verdict in verdicts.items() if verdict.verdict == VerdictCode.ADMITTED]
    wrong = [site for site, code in proof.refused.items() if verdicts[site].verdict != code]
    if merged != proof.summed or wrong:
        why = "holds other verdicts than its messages prove"
        raise PolicyError(f"round {number}", why, "restore ledger and transcripts from one backup")


def _log(directory: Path) -> Path:
    from usfmae.server.layout import Layout

    return Layout(directory).audit


audit = audit_command(_log)
