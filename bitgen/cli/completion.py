"""What a shell completes when Tab is pressed: values of options, and the script that makes a shell ask for them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from bitgen import api, targets
from bitgen.checkpoints import ladder, presets
from bitgen.cli.console import say
from bitgen.errors import BitgenError
from bitgen.kernels import space
from bitgen.text.chat_templates import NAMED

SHELLS = ("bash", "zsh", "fish")

_PLAIN = re.compile(r"[\w./~+@%=:-]+")

Values = Callable[[str], Iterable[str]]
"""What has been typed of a value -> values that may be meant; the shell is given those that begin so."""


def models(incomplete: str) -> list[str]:
    """Presets, models that are here, and model files of the folder that is named so far."""
    try:
        here = api.model_names()
    except (BitgenError, OSError):  # a cache that cannot be read
        here = []
    return list(dict.fromkeys([*shapes(incomplete), *here, *model_files(incomplete)]))


def shapes(incomplete: str) -> list[str]:
    """Presets; the rungs of the ladder only where one has been begun."""
    rungs = [ladder.PREFIX + size for size in ladder.sizes()] if ladder.is_rung(incomplete) else []
    return presets.names() + rungs


def model_files(incomplete: str) -> list[str]:
    """GGUF files of the folder that is named so far, as the user writes it."""
    prefix = incomplete[: incomplete.rfind("/") + 1]
    try:
        return sorted(prefix + path.name for path in Path(prefix or ".").expanduser().glob("*.gguf"))
    except (OSError, RuntimeError):  # no such folder, no such user
        return []


def symbols(_: str) -> Iterator[str]:
    """Kernels that the presets have by default on this architecture: those that need neither a compiler nor a plan."""
    gemms = dict.fromkeys(gemm for name in presets.names() for gemm in presets.load(name).all_matrices.values())
    for gemm, target in product(gemms, targets.levels(targets.platform_of())):
        with contextlib.suppress(BitgenError):  # no format of this level takes the shape
            yield from (spec.symbol for spec in space.default_plan(gemm, target.isa).specs(gemm, target.isa))


VALUES: dict[str, tuple[Values, bool]] = {
    "MODEL": (models, True),
    "FILE": (models, True),
    "NAME": (models, True),
    "SOURCE": (models, True),
    "PRESET": (shapes, False),
    "SIZE,...": (lambda _: ladder.sizes(), False),
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
        if kind in VALUES and (argument or kind not in ("FILE", "NAME")):  # files that hold no models, names of CPUs
            param.shell_complete = partial(_complete, *VALUES[kind])  # type: ignore[method-assign]


def _complete(values: Values, files: bool, _: click.Context, incomplete: str) -> list[CompletionItem]:
    """Values that begin so. Where no name does, bash completes files; zsh and fish offer both.

    What a shell would split or expand is left out: a file's name is anybody's, and the shell quotes those by itself.
    """
    begun = (value for value in values(incomplete) if value.lower().startswith(incomplete.lower()))
    named = [CompletionItem(value) for value in begun if _PLAIN.fullmatch(value)]
    return [*([CompletionItem(incomplete, type="file")] if files else []), *named]


@add_completion_class
class Bash(BashComplete):
    """bash, also macOS's 3.2, which can neither keep an order nor be told of files midway.

    click splits words where bash does, at colons too, which names of models have. So the line is split here, and bash
    is given what follows the last colon.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' line type value
    COMPREPLY=()
    for line in $(env COMP_LINE="${COMP_LINE:0:$COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1"); do
        IFS=, read -r type value <<< "$line"
        case $type in
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s 2>/dev/null ||
    complete -o default -F %(complete_func)s %(prog_name)s
"""

    def source(self) -> str:
        """The script; click's own asks first whether bash is new enough."""
        return ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is typed, and that."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        self._typed = words.pop() if words and not line.endswith(" ") else ""
        return words[1:], self._typed

    def format_completion(self, item: CompletionItem) -> str:
        """A line for the script."""
        known = self._typed.rfind(":") + 1 if ":" in os.environ.get("COMP_WORDBREAKS", ":") else 0
        return f"{item.type},{item.value[known:] if item.type == 'plain' else item.value}"


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
    say(found(root, {}, "bitgen", "_BITGEN_COMPLETE").source(), nl=False)
