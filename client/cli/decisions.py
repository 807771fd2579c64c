"""`usfmae-client campaign|outbox|withdraw`: what may be computed here, on what, and what may leave; a person decides."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli import site_directory
from usfmae.core.cli.shell import as_json, print_json

ACTIONS = ["list", "show", "approve", "reject", "restart"]


@click.command()
@site_directory
@click.argument("action", required=False, type=click.Choice(ACTIONS), default="list")
@click.argument("name", required=False)
@click.option("--reason", default="", help="Why, for the audit log.")
@as_json
def campaign(directory: Path, action: str, name: str | None, reason: str, as_json: bool) -> None:
    """What a campaign asks of this site; agree to it or refuse.

    Lists every campaign that asked, shows one in words, or takes your decision. Without NAME it is the one that waits.

    Nothing is downloaded or trained for a campaign before this site agreed to it. `restart` expects the coordinator to
    go on from an earlier round or from another encoder, as after a backup was restored: the next request is taken.

    \b
    usfmae-client campaign SITE
    usfmae-client campaign SITE show NAME
    usfmae-client campaign SITE approve NAME
    usfmae-client campaign SITE reject NAME --reason TEXT
    usfmae-client campaign SITE restart NAME
    """
    from dataclasses import asdict

    from usfmae.client.rounds import campaigns
    from usfmae.client.site import Site
    from usfmae.core.errors import UsageError

    site = Site.open(directory)
    if action == "list":
        agreements = campaigns.agreements(site)
        if as_json:
            print_json([asdict(one) for one in agreements])
        else:
            for one in agreements:
                click.echo(f"{one.campaign}  {one.state}  {one.encoding}, {one.steps} steps a round")
        return
    waiting = [one.campaign for one in campaigns.agreements(site) if one.state is campaigns.CampaignState.WAITING]
    name = name or (waiting[0] if len(waiting) == 1 else None)
    if not name:
        raise UsageError(f"campaign {action}", "needs a NAME", f"see 'usfmae-client campaign {directory}'")
    if action == "show":
        one = campaigns.agreement_named(site, name)
        print_json(asdict(one)) if as_json else click.echo(campaigns.in_words(one), nl=False)
    elif action == "restart":
        campaigns.restart(site, name, reason)
        click.echo(f"{name}: the next request is taken, of any round", err=True)
    else:
        campaigns.decide(site, name, action == "approve", reason)
        click.echo(f"{name} {'agreed' if action == 'approve' else 'refused'}", err=True)


@click.command()
@site_directory
@click.argument(
    "action", required=False, type=click.Choice(["list", "show", "probe", "approve", "reject"]), default="list"
)
@click.argument("entry", required=False)
@click.option("--reason", default="", help="Why, for the audit log.")
@as_json
def outbox(directory: Path, action: str, entry: str | None, reason: str, as_json: bool) -> None:
    """What left, what waits to leave; approve or reject it.

    Lists every update this site made, shows the sheet of one or what its probe saw, or takes your decision on one that
    waits. An update out of which one of your pictures could be read waits in any case.

    \b
    usfmae-client outbox SITE
    usfmae-client outbox SITE show ENTRY
    usfmae-client outbox SITE probe ENTRY
    usfmae-client outbox SITE approve ENTRY
    usfmae-client outbox SITE reject ENTRY --reason TEXT
    """
    from usfmae.client import outbox as room
    from usfmae.client.site import Site
    from usfmae.core.errors import UsageError

    site = Site.open(directory)
    if action != "list" and not entry:
        raise UsageError(f"outbox {action}", "needs an ENTRY", f"see 'usfmae-client outbox {directory}'")
    if action in ("approve", "reject"):
        room.decide(site, str(entry), action == "approve", reason)
        click.echo(f"{entry} {'approved' if action == 'approve' else 'rejected'}", err=True)
        return
    entries = room.entries(site)
    if action in ("show", "probe"):
        entries = [e for e in entries if e["id"] == entry]
        if not entries:
            raise UsageError(f"outbox entry {entry!r:.60}", "does not exist", f"see 'usfmae-client outbox {directory}'")
    if action == "probe":
        tested = room.probed(entries[0])
        print_json(tested) if as_json else click.echo(room.tested(entries[0]))
    elif as_json:
        print_json(entries if action == "list" else entries[0])
    elif action == "show":
        click.echo(room.sheet(entries[0]) + f"\nstate: {entries[0]['state']}")
    else:
        for e in entries:
            click.echo(f"{e['id']}  round {e['round']:5d}  {e['bytes']:>11,d} bytes  {e['state']:8s}  {e['campaign']}")
            click.echo(f"    drawn on {room.drawn_on(e)}")


@click.command()
@site_directory
@click.option("--image", metavar="SHARD/ROW", help="One image of the corpus, as its page under Kept is called.")
@click.option("--whole-patient", is_flag=True, help="With --image: every image of the same patient.")
@click.option(
    "--file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A scan: every image of its patient."
)
@click.option("--patient", is_flag=True, help="Asks for the Patient ID: every image of this patient.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def withdraw(
    directory: Path, image: str | None, whole_patient: bool, file: Path | None, patient: bool, yes: bool, as_json: bool
) -> None:
    """Take one image, or all of a patient, out of the corpus for good.

    No training draws on them again, and later scans of the patient stay out. Pause the site first where it trains. The
    Patient ID is asked for, so that it enters no list of commands. Scans at their source, backups and encoders that
    were merged stay as they are.

    \b
    usfmae-client withdraw st-olav --image 0001-000000.gray/17
    usfmae-client withdraw st-olav --file scan.dcm
    usfmae-client withdraw st-olav --patient
    """
    from usfmae.client import withdraw as room
    from usfmae.client.site import Site
    from usfmae.core.errors import UsageError
    from usfmae.core.prepare.withdraw import Withdrawn, found

    if sum(map(bool, (image, file, patient))) != 1:
        raise UsageError("withdraw", "takes one of --image, --file and --patient", "see --help")
    site, one = Site.open(directory), None
    if file:
        asked = room.patient_of_file(site, file)
    elif patient:
        asked = room.patient_of_id(site, click.prompt("Patient ID", err=True))
    else:
        one = room.image_named(site, str(image))
        asked = room.patient_of_image(site, one) if whole_patient else Withdrawn()
    count = 1 if one and not whole_patient else found(site.corpus, asked)
    if not yes:
        click.confirm(f"take {count} image(s) out of the corpus? This cannot be taken back", abort=True, err=True)
    count = room.take_out_image(site, one) if one and not whole_patient else room.take_out(site, asked)
    if as_json:
        print_json({"images": count})
        return
    click.echo(f"{count} image(s) taken out")
    click.echo("still there, if any: scans at their source, older backups, encoders that were merged", err=True)
