"""Commands on the models of this machine: pull, list, rm; and on the cache."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence

import click

from bitgen import api
from bitgen.cli.console import progress_bar, say
from bitgen.cli.located import agreed, is_terminal, pulled
from bitgen.cli.options import json_option, quiet_option
from bitgen.errors import BitgenError, size


@click.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@quiet_option
def pull(name: str, yes: bool) -> None:
    """Download a model, and print where its file is.

    NAME is a preset like 2B4T, or a repository on the Hugging Face Hub: hf:owner/repo, hf:owner/repo@revision,
    hf:owner/repo:TAG (a type like TQ2_0, or a file), or the address of its page. Of several GGUF files the smallest is
    taken that bitgen runs and that rounds nothing; where there is none, the checkpoint, which is then converted. A
    download that was interrupted goes on where it was. On a terminal pull asks first.
    """
    say(pulled(name, ask=is_terminal() and not yes))


@click.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Show the models on this machine, the presets, and what bitgen's cache holds."""
    with progress_bar() as listen:
        listen("looking at what is here", 0, 0)
        shelf = api.models()
    if as_json:
        say(json.dumps(shelf.to_json(), indent=1))
        return
    for each in shelf.models:
        packed = f", packed {size(each.packed_bytes)}" if each.packed_bytes else ""
        used = f", used {_day(each.used)}" if each.used else ""
        say(f"{each.name}\n    {each.kind}, {each.type}, {size(each.bytes)}{packed}{used}{', chats' * each.chats}")
    for name, nbytes in shelf.interrupted.items():
        say(f"{name}\n    interrupted download, {size(nbytes)} so far: `bitgen pull` goes on, `bitgen rm` removes it")
    say("\npresets")
    rows = [(p.name, size(p.bytes), "here" if p.here else f"hf:{p.hub}" if p.hub else "not on the Hub")
            for p in shelf.presets]  # fmt: skip
    _columns(rows)
    say("\ncache")
    _columns(
        [(kind, size(nbytes), f"{n} {'entry' if n == 1 else 'entries'}") for kind, (n, nbytes) in shelf.cache.items()]
    )


@click.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Show what would go, and remove nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(name: str, dry_run: bool, yes: bool) -> None:
    """Remove a model that bitgen brought: its download, what was converted and what was packed from it.

    NAME is as in `bitgen list`. Of a repository on the Hub all revisions go, or the one that is named. A file of your
    own is never removed; of a checkpoint's folder only what bitgen made from it is.
    """
    found = api.removal(name)
    for commit in found.revisions:
        say(f"revision {commit} in the Hugging Face cache", err=True)
    for path in found.paths:
        say(path, err=True)
    if dry_run:
        say(f"{size(found.bytes)} would become free")
        return
    freed = size(found.bytes)
    if not yes:
        if not is_terminal():
            raise BitgenError(f"removing {name} needs a yes: `bitgen rm {name} --yes`")
        if not agreed(f"{freed}, remove?"):
            raise BitgenError(f"{name} stays")
    found.execute()
    say(f"{freed} freed")


@click.group()
def cache() -> None:
    """What bitgen keeps to start quickly: compiled libraries, packed models."""


@cache.command()
@click.option("--dry-run", is_flag=True, help="Show what would go, and remove nothing.")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS",
              help="Also what was not used for so many days, though a model here needs it.")  # fmt: skip
def prune(dry_run: bool, older_than: float | None) -> None:
    """Remove what no model here needs: packed files of models that are gone, builds that nothing runs on.

    Nothing is lost but time: what is needed again is made again. Compiled objects go when they were not used for 30
    days, or DAYS. What a process has open stays, and so do plans of tuning and downloads.
    """
    done = api.prune_cache(older_than, dry_run)
    for gone in done.removed:
        say(f"{size(gone.bytes):>10}  {gone.path.parent.name}/{gone.path.name}: {gone.why}", err=True)
    if done.in_use:
        say(f"in use, or used just now: {len(done.in_use)} more", err=True)
    say(f"{size(done.freed)} {'would become free' if dry_run else 'freed'}")


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def _columns(rows: Iterable[Sequence[str]]) -> None:
    """Print rows of a name, a size, and words."""
    rows = list(rows)
    width = max(len(row[0]) for row in rows)
    for name, amount, words in rows:
        say(f"    {name:<{width}}  {amount:>9}  {words}")
