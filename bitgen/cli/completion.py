"""What a shell completes when Tab is pressed: values of options, and the script that makes a shell ask for them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from bitgen import targets
from bitgen.checkpoints import presets
from bitgen.cli.console import say
from bitgen.errors import BitgenError
from bitgen.kernels import space
from bitgen.text.chat_templates import NAMED

SHELLS = ("bash", "zsh", "fish")


Values = Callable[[str], Iterable[str]]
"""What has been typed of a value -> values that may be meant; the shell is given those that begin so."""


def presets_and_files(incomplete: str) -> list[str]:
    """Names of presets, of which one ships, and model files of the folder that is named so far."""
    return [*presets.names(), *model_files(incomplete)]


def model_files(incomplete: str) -> list[str]:
    """GGUF files of the folder that is named so far, as the user writes it.

    Without those that a shell would split or expand: it completes and quotes them by itself.
    """
    prefix = incomplete[: incomplete.rfind("/") + 1]
    try:
        names = sorted(prefix + path.name for path in Path(prefix or ".").expanduser().glob("*.gguf"))
    except (OSError, RuntimeError):  # no such folder, no such user
        return []
    return [name for name in names if re.fullmatch(r"[\w./~+@%=-]+", name)]


def symbols(_: str) -> Iterator[str]:
    """Kernels that the presets have by default on this architecture: those that need neither a compiler nor a plan."""
    shapes = dict.fromkeys(gemm for name in presets.names() for gemm in presets.load(name).matrices.values())
    for gemm, target in product(shapes, targets.levels(targets.platform_of())):
        with contextlib.suppress(BitgenError):  # no format of this level takes the shape
            yield from (spec.symbol for spec in space.default_plan(gemm, target.isa).specs(gemm, target.isa))


VALUES: dict[str, tuple[Values, bool]] = {
    "MODEL": (presets_and_files, True),
    "FILE": (model_files, True),
    "SOURCE": (presets_and_files, True),
    "PRESET": (lambda _: presets.names(), False),
    "LEVEL": (lambda _: targets.TARGETS, False),
    "SYMBOL": (symbols, False),
    "NAME|FILE": (lambda _: NAMED, True),
}
"""What a command's help calls a value -> values by name, and whether any file may be meant."""


def complete_values(commands: Iterable[click.Command]) -> None:
    """Teach the parameters of commands what VALUES says; click knows choices, and types of files, by itself."""
    for param in (param for command in commands for param in command.params):
        argument = isinstance(param, click.Argument)
        kind = param.metavar or (str(param.name).upper() if argument else "")
        if kind in VALUES and (kind != "FILE" or argument or param.name == "model"):  # other files hold no models
            param.shell_complete = partial(_complete, *VALUES[kind])  # type: ignore[method-assign]


def _complete(values: Values, files: bool, _: click.Context, incomplete: str) -> list[CompletionItem]:
    """Values that begin so. Where no name does, bash completes files; zsh and fish offer both."""
    named = [CompletionItem(value) for value in values(incomplete) if value.lower().startswith(incomplete.lower())]
    return [*([CompletionItem(incomplete, type="file")] if files else []), *named]


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script with which a shell completes bitgen's commands, options and their values.

    \b
    bash: eval "$(bitgen completion bash)" in ~/.bashrc
    zsh:  eval "$(bitgen completion zsh)" in ~/.zshrc, behind compinit
    fish: bitgen completion fish > ~/.config/fish/completions/bitgen.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # click has all of SHELLS
    root = click.get_current_context().find_root().command
    script = ShellComplete.source(found(root, {}, "bitgen", "_BITGEN_COMPLETE"))
    say(_for_old_bash(script) if shell == "bash" else script, nl=False)


def _for_old_bash(script: str) -> str:
    """The script without what macOS's bash 3.2 complains of: that keeps the order, and that lets files follow."""
    quiet = re.sub(r"^( *compopt .*)$", r"\1 2>/dev/null", script, flags=re.M)
    setup = r"^( *)complete -o nosort (.*)$", r"\1complete -o nosort \2 2>/dev/null || complete -o default \2"
    return re.sub(*setup, quiet, flags=re.M)
