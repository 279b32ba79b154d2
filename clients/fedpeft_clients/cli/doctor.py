"""``fedpeft node doctor``: what would keep this node from working, in plain lines."""

from __future__ import annotations

import http.client
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import get_args

from fedpeft import __version__
from fedpeft.cli.doctor import PACKAGES
from fedpeft.cli.output import quantity
from fedpeft.config.models import BaseConfig, Quantisation, Task
from fedpeft.errors import BaseModelError, FedPeftError
from fedpeft_clients.governance.joining import Address
from fedpeft_clients.governance.organisation import Grant, Organisation
from fedpeft_clients.governance.policy import Policy, old_names, parse_policy
from fedpeft_clients.outbox import ledger_witness

LEAST_DISK = 2 * 2**30
MOST_SKEW = 60.0
"""Seconds; Flower refuses signatures that are more than 300 s off."""
SECONDS = 5.0
QUANTISATIONS: tuple[Quantisation, ...] = get_args(Quantisation)
TASKS: tuple[Task, ...] = get_args(Task)
WEIGHTS_TIMES = 2
"""Memory for loading a base, over its files: weights of 16 bits become 32 on most processors."""

Check = dict[str, str]


def examine(organisation: Organisation) -> list[Check]:
    """All checks: name, state (``ok``, ``note`` or ``wrong``) and plain words."""
    checks = (_keys, _policy, _bases, _data, _ledger, _outbox, _coordinators, _disk, _machine)
    return [result for check in checks for result in _safely(check, organisation)]


def _safely(check: Callable[[Organisation], Iterator[Check]], organisation: Organisation) -> list[Check]:
    name = check.__name__.lstrip("_")
    try:
        return list(check(organisation))
    except (FedPeftError, OSError, ValueError) as error:
        return [_wrong(name, str(error))]


def _keys(organisation: Organisation) -> Iterator[Check]:
    from fedpeft.trust import public_line

    for path in (organisation.signing, organisation.transport):
        if not path.exists():
            yield _wrong("keys", f"{path.name} is missing; restore it from a backup")
        elif mode := path.stat().st_mode & 0o077:
            yield _wrong("keys", f"{path.name} is open to others (mode {mode:03o}): chmod 600 {path}")
        else:
            yield _ok("keys", f"{path.name} is for its owner only")
    if organisation.path.stat().st_mode & 0o077:
        yield _wrong("keys", f"{organisation.path} is open to others: chmod 700 {organisation.path}")
    public_line(organisation.transport.read_bytes())
    yield _ok("keys", f"public signing key {organisation.signer.public.hex()}")


def _policy(organisation: Organisation) -> Iterator[Check]:
    policy = _parsed(organisation)
    yield _ok("policy", "holds")
    if names := old_names(organisation.policy.read_text(encoding="utf-8")):
        yield _note(
            "policy", f"{', '.join(names)}: most_ is now max_, least_ is now min_; old names work until 0.3"
        )
    if policy.approval is False:
        yield _note("policy", "runs within the policy need no approval")
    if "none" in policy.privacy.units:
        yield _note("policy", "runs without differential privacy are allowed")


def _bases(organisation: Organisation) -> Iterator[Check]:
    policy = _parsed(organisation)
    if policy.bases == "any":
        yield _note("base", "any base is allowed")
        return
    if not policy.bases:
        yield _note("base", "no base is allowed yet: add its hash and folder under [bases] of the policy")
    for agreed, folder in policy.bases.items():
        try:
            yield from _base(agreed, folder)
        except FedPeftError as error:
            yield _wrong("base", str(error))


def _base(agreed: str, folder: str) -> Iterator[Check]:
    """Whether a base of the policy is the agreed one, and does what training takes for granted."""
    from fedpeft.bases import base_folder

    place = base_folder(BaseConfig(model=folder))
    quantisation = _agreed_quantisation(place, agreed)
    if quantisation is None:
        yield _wrong("base", f"{folder} does not have the agreed content {agreed[:12]}; get the agreed base")
        return
    yield _ok("base", f"{folder} has the agreed content {agreed[:12]}")
    yield _probed(BaseConfig(model=folder, quantisation=quantisation), place)


def _agreed_quantisation(place: Path, agreed: str) -> Quantisation | None:
    """The quantisation with which a base has the agreed hash."""
    from fedpeft.bases import content_hash
    from fedpeft.bases.files import read_model_config, stored_quantisation

    on_disk = stored_quantisation(read_model_config(place))
    for quantisation in QUANTISATIONS:
        if on_disk in ("none", quantisation) and content_hash(place, quantisation) == agreed:
            return quantisation
    return None


def _probed(base: BaseConfig, place: Path) -> Check:
    """Load a base as a run does, for each task until it does for one; not one that may not fit."""
    from fedpeft.bases import describe_devices
    from fedpeft.bases.files import weight_files
    from fedpeft.bases.load import load_apart

    needed = WEIGHTS_TIMES * sum(file.stat().st_size for file in weight_files(place))
    if needed > (free := max(device.free for device in describe_devices())):
        words = f"{quantity(needed)} may be needed and {quantity(free)} are free"
        return _note("base", f"{base.model} was not tried: {words}")
    causes = list[str]()
    for task in TASKS:
        try:
            load_apart(base.model_copy(update={"task": task}))
        except BaseModelError as error:
            causes.append(str(error))
        else:
            return _ok("base", f"{base.model} was loaded and tried for {task}")
    return _wrong("base", causes[0])


def _data(organisation: Organisation) -> Iterator[Check]:
    from fedpeft.data import Notes, read_records
    from fedpeft_clients.governance.data_check import check_chats, columns_of
    from fedpeft_clients.governance.record_overlap import admit

    known, most = organisation.datasets(), _parsed(organisation).privacy.max_overlap
    if not known:
        yield _note("data", "no data set is registered: fedpeft node data add")
    for name, dataset in known.items():
        notes = Notes()
        records = read_records(Path(dataset.file), columns_of(dataset.columns), notes=notes)
        check_chats(organisation, records, notes)
        yield _ok("data", f"{name} has {len(records)} readable records, privacy-budget id {dataset.lineage}")
        for note in (*notes.lines(), *admit(organisation, dataset, most)):
            yield _note("data", f"{name}: {note}")


def _ledger(organisation: Organisation) -> Iterator[Check]:
    from fedpeft.privacy import Ledger
    from fedpeft.privacy.ledger import clock

    for problem in ledger_witness.problems(organisation):
        yield _wrong("ledger", f"{problem}; {ledger_witness.REMEDY}")
    if not organisation.ledger.exists() or not (ledger := Ledger(organisation.ledger)).entries():
        return
    head = ledger.verify(key=organisation.signer.public)
    yield _ok("ledger", f"intact, {head.seq} entries")
    clock.present(ledger.entries(), time.time(), strict=True)


def _outbox(organisation: Organisation) -> Iterator[Check]:
    _, head = organisation.outbox.verified()
    yield _ok("outbox", f"intact, {head.seq} entries")


def _coordinators(organisation: Organisation) -> Iterator[Check]:
    from fedpeft_clients.service.service import allowed_apps, running

    grants = organisation.grants()
    if not grants:
        yield _note("coordinator", "none is joined: fedpeft node join ADDRESS --token TOKEN")
    for grant in grants:
        if grant.app not in allowed_apps(_parsed(organisation)):
            yield _wrong(
                "app", f"{grant.federation} runs app {grant.app[:12]}, which the policy does not allow"
            )
        life = "is running" if running(grant) else "is not running"
        yield _ok("service", f"the node for {grant.federation} {life}")
        yield _clock(grant)


def _clock(grant: Grant) -> Check:
    """The clock against the coordinator's, over verified TLS."""
    address = Address.parse(grant.address)
    context = ssl.create_default_context(cadata=grant.ca.read_text(encoding="ascii"))
    link = http.client.HTTPSConnection(address.host, address.port, timeout=SECONDS, context=context)
    try:
        link.request("GET", "/ca.crt")
        date = link.getresponse().getheader("Date")
    except ssl.SSLError as error:
        return _wrong("coordinator", f"{address} shows a certificate that does not hold ({error.reason})")
    except (OSError, http.client.HTTPException) as error:
        return _note("coordinator", f"{address} does not answer ({type(error).__name__})")
    finally:
        link.close()
    if date is None:
        return _note("clock", f"{address} sends no time")
    skew = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(skew) > MOST_SKEW:
        return _wrong("clock", f"this clock is {skew:+.0f} s off {address}'s: set the time (NTP)")
    return _ok("clock", f"agrees with {address}'s within {abs(skew) + 1:.0f} s")


def _disk(organisation: Organisation) -> Iterator[Check]:
    free = shutil.disk_usage(organisation.path).free
    words = f"{quantity(free)} free in {organisation.path}"
    yield (
        _ok("disk", words)
        if free >= LEAST_DISK
        else _wrong("disk", f"{words}; {quantity(LEAST_DISK)} needed")
    )


def _machine(organisation: Organisation) -> Iterator[Check]:
    from importlib.metadata import PackageNotFoundError, version

    from fedpeft.bases import describe_devices

    for device in describe_devices():
        yield _ok("device", f"{device.name}: {device.model}, {quantity(device.free)} of memory free")
    versions = [f"fedpeft {__version__}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    yield _ok("versions", ", ".join(versions))


def _parsed(organisation: Organisation) -> Policy:
    return parse_policy(organisation.policy.read_text(encoding="utf-8"))


def _ok(check: str, words: str) -> Check:
    return {"check": check, "state": "ok", "words": words}


def _note(check: str, words: str) -> Check:
    return {"check": check, "state": "note", "words": words}


def _wrong(check: str, words: str) -> Check:
    return {"check": check, "state": "wrong", "words": words}
