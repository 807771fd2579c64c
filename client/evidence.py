"""The folder for a security review: what runs here, what left, which controls hold, and the answers reviewers ask for.

    versions.json sbom.cdx.json   this program and every library it runs with
    audit.json                    whether the log's chain holds, and how many entries of each kind it has
    left.json                     every update that was sent, for whom, and how large
    controls.json                 the egress controls (EG-1 to EG-8) as they are set here, and the floor of each request
    intake.json                   what came in and what became of it, by the ledger's books
    settings.json                 the site's settings without secrets
    index.html dpia.md data-permit.md   the answers; every figure in them is a link to the file and key it comes from
    egress.md threat-model.md     the pages of the documentation that the answers refer to

No picture, no name, no path of a scan is in it. `check` compares every linked figure with its file again.
"""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from datetime import UTC, datetime
from html import unescape
from importlib.metadata import distributions
from importlib.resources import files as resources
from pathlib import Path
from platform import platform, python_version
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from usfmae.client import outbox, site_policy
from usfmae.client.review.quarantine import Intake, waiting_by_reason
from usfmae.client.site import Site, write_json
from usfmae.core import __version__, audit
from usfmae.core.errors import PolicyError, UsageError
from usfmae.core.report.page import render, write_page

ANSWERS = ("index.html", "dpia.md", "data-permit.md")
FLOOR = ("min_images", "min_patients", "max_patient_share", "min_batch", "min_steps", "encodings")
PAGES = ("egress.md", "threat-model.md")
LINKED = re.compile(r'<a href="([\w.]+\.json)#([^"]+)">([^<]*)</a>|\[([^\]]*)\]\(([\w.]+\.json)#([^)]+)\)')


def write(site: Site, folder: Path) -> dict[str, Any]:
    """Make the folder; returns a few figures of what it holds. UsageError where it exists."""
    if folder.exists():
        raise UsageError(f"folder {folder}", "exists already", "give a new one: evidence is never changed")
    folder.mkdir(parents=True)
    files = {
        "versions.json": versions(),
        "sbom.cdx.json": bill_of_materials(),
        "audit.json": audited(site),
        "left.json": left(site),
        "controls.json": controls(site),
        "intake.json": intake(site),
        "settings.json": settings(site),
    }
    for name, value in files.items():
        write_json(folder / name, value)
    values = {
        "figure": _linker(files),
        "name": site.settings.name,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    }
    values |= {"files": [*files, *PAGES], "left": files["left.json"]["updates"], "controls": files["controls.json"]}
    write_page(folder / "index.html", "evidence.html", **values)
    for name in ANSWERS[1:]:
        (folder / name).write_text(render(f"evidence/{name}", **values))
    for name in PAGES:
        (folder / name).write_bytes((resources("usfmae.core.report") / "templates" / "evidence" / name).read_bytes())
    count = check(folder)
    return {
        "folder": str(folder),
        "figures": count,
        "files": len(list(folder.iterdir())),
        "audit": "sound" if files["audit.json"]["sound"] else files["audit.json"]["why"],
        "updates_left": files["left.json"]["count"],
    }


def check(folder: Path) -> int:
    """The number of linked figures. PolicyError where one differs from the file that it is said to come from."""
    count = 0
    for name in ANSWERS:
        for html_file, html_key, html_text, text, file, key in LINKED.findall((folder / name).read_text()):
            figure, source, pointer = (html_text, html_file, html_key) if html_file else (text, file, key)
            if unescape(figure) != shown(pointed(json.loads((folder / source).read_text()), unescape(pointer))):
                raise PolicyError(
                    f"figure {figure!r} in {name}", f"is not what {source}#{pointer} says", "make it again"
                )
            count += 1
    return count


def _linker(files: dict[str, Any]) -> Any:
    """`figure(file, pointer)` for the pages, `figure(file, pointer, plain=True)` for Markdown."""

    def figure(file: str, pointer: str, plain: bool = False) -> str:
        text = shown(pointed(files[file], pointer))
        if plain:
            return f"[{text}]({file}#{pointer})"
        return Markup(f'<a href="{file}#{escape(pointer)}">{escape(text)}</a>')  # noqa: S704 - both are escaped

    return figure


def pointed(value: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901, without escapes) points at. KeyError where there is nothing."""
    for part in pointer.removeprefix("/").split("/"):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def shown(value: Any) -> str:
    """A figure as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(shown(one) for one in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


# What the files hold --------------------------------------------------------------------------------------------------


def versions() -> dict[str, Any]:
    return {"usfmae": __version__, "python": python_version(), "system": platform(), "libraries": len(_libraries())}


def _libraries() -> list[dict[str, str]]:
    """Every installed distribution with its version and licence as it states them."""
    libraries = {}
    for one in distributions():
        meta: Any = one.metadata
        licence = meta.get("License-Expression") or meta.get("License") or ""
        libraries[meta["Name"].lower()] = {
            "name": meta["Name"],
            "version": one.version,
            "licence": licence.split("\n")[0][:80],
        }
    return [libraries[name] for name in sorted(libraries)]


def bill_of_materials() -> dict[str, Any]:
    """CycloneDX 1.5: what is installed in this environment now."""
    components = [
        {
            "type": "library",
            "name": one["name"],
            "version": one["version"],
            "purl": f"pkg:pypi/{one['name'].lower().replace('_', '-')}@{one['version']}",
            **({"licenses": [{"license": {"name": one["licence"]}}]} if one["licence"] else {}),
        }
        for one in _libraries()
    ]
    metadata = {"component": {"type": "application", "name": "usfmae", "version": __version__}}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": metadata,
        "components": components,
    }


def audited(site: Site) -> dict[str, Any]:
    try:
        entries, why = audit.verify(site.audit_log), ""
    except PolicyError as error:
        entries, why = 0, str(error)
    events: Counter[str] = Counter()
    status: Counter[str] = Counter()
    first = last = head = ""
    if not why:
        for entry in audit.entries(site.audit_log):
            events[entry["event"]] += 1
            status[entry["status"]] += 1
            first, last, head = first or entry["time"], entry["time"], entry["hash"]
    chain = {"sound": not why, "why": why, "entries": entries, "first": first, "last": last, "head": head}
    return {**chain, "events": dict(sorted(events.items())), "status": dict(sorted(status.items()))}


def left(site: Site) -> dict[str, Any]:
    entries = outbox.entries(site)
    sent = [entry for entry in entries if entry["state"] == "sent"]
    names = ("id", "campaign", "round", "bytes", "norm", "recipient", "drawn")
    updates = [
        {**{name: entry.get(name) for name in names}, "approved_by": entry["decision"].get("by", "by policy")}
        for entry in sent
    ]
    states = Counter(str(entry["state"]) for entry in entries)
    return {
        "count": len(sent),
        "bytes": sum(int(entry["bytes"]) for entry in sent),
        "recipients": sorted({str(entry.get("recipient")) for entry in sent}),
        "waiting": states["waiting"],
        "rejected": states["rejected"],
        "updates": updates,
    }


def controls(site: Site) -> dict[str, Any]:
    """The named controls of egress.md as this site has them."""
    own, floor = site.settings, site.settings.privacy
    mode = stat.S_IMODE(site.root.stat().st_mode)
    return {
        "EG-1": {"name": "staging", "state": f"{len(outbox.entries(site))} updates staged with a sheet"},
        "EG-2": {"name": "approval", "state": own.release},
        "EG-3": {"name": "signing", "state": f"site key {site.fingerprint}"},
        "EG-4": {"name": "audit", "state": audited(site)["entries"]},
        "EG-5": {"name": "content", "state": "keys outside the protocol are refused on both sides"},
        "EG-6": {"name": "destination", "state": own.server},
        "EG-7": {"name": "stop", "state": "paused" if site_policy.paused(site) else "running; 'pause' stops it"},
        "EG-8": {"name": "report", "state": "usfmae-client report"},
        "floor": floor.model_dump(mode="json", include=set(FLOOR)),
        "new_campaigns": str(floor.new_campaigns),
        "directory_mode": f"{mode:04o}",
        "closed_to_others": not mode & (stat.S_IRWXG | stat.S_IRWXO),
    }


def intake(site: Site) -> dict[str, Any]:
    totals = Intake().refresh(site.corpus)
    waiting = waiting_by_reason(site, totals)
    names = ("scans", "frames", "kept", "quarantined", "duplicates", "refused", "failed")
    return {
        **{name: totals.counts[name] for name in names},
        "open_quarantine": waiting.total(),
        "reasons": dict(sorted(totals.reasons.items())),
        "profile": site.settings.clean.profile,
    }


def settings(site: Site) -> dict[str, Any]:
    """As they are in force; a proxy's user and password are left out, and of the sources only their number is given."""
    values: dict[str, Any] = site.settings.model_dump(mode="json")
    values["sources"] = len(site.settings.sources)
    if values.get("proxy"):
        parts = urlsplit(values["proxy"])
        values["proxy"] = f"{parts.scheme}://{parts.hostname}:{parts.port}"
    return values
