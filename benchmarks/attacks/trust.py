"""The table of docs/trust.md: what each adversary finds in each mode, from audits of real runs.

python -m benchmarks.attacks.trust                        all rows, their audits, and the table
python -m benchmarks.attacks.trust --rows shared image    some rows; the others stay as they are
python -m benchmarks.attacks.trust --seconds shared       how long each attack took

A row is a configuration in configs/trust/. Each configuration is run with every seed. The run of
the first seed is audited twice: by `--attack RUN`, and by `crafted_embedding` with `--images 1`,
which `--attack RUN` alone does not carry out. Runs and audits that the folder already has are not
repeated. The table is written into the page between its two marks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.attacks.results import WHOLE, Figure
from fl_vitlora.config import Config
from fl_vitlora.config.attack_names import USUAL
from fl_vitlora.experiment.attacked_run import settings_of
from fl_vitlora.experiment.attacking import attack_run
from fl_vitlora.experiment.runner import run
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.strategy import Strategy

ROOT = Path(__file__).resolve().parents[2]
CONFIGS, PAGE = ROOT / "configs" / "trust", ROOT / "docs" / "trust.md"
BEGIN, END = "<!-- what each adversary finds -->", "<!-- end -->"
MORE = "crafted.json"  # the outcome of the second audit
ON_REQUEST = ("crafted_embedding",)
ATTACKS = (*USUAL, *ON_REQUEST)
ADVERSARIES = (
    "server",
    "informed server",
    "hostile server",
    "outsider",
    "user",
    "thief",
    "worker",
    "insider",
)
NOTHING, HOSTILE = "–", "hostile server"


def main() -> None:
    """Makes the runs and audits that are missing, and writes the table."""
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks.trust",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW")
    parser.add_argument(
        "--crafted",
        nargs="*",
        choices=names,
        default=names,
        metavar="ROW",
        help="rows that crafted_embedding attacks, too; it takes minutes (all)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/trust"))
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--seconds", nargs="+", choices=names, metavar="ROW")
    arguments = parser.parse_args()
    if arguments.seconds:
        print(seconds_table(arguments.folder, arguments.seconds, arguments.seeds[0]))
        return
    with Engine(verbose=False) as engine:
        for name in arguments.rows:
            for seed in arguments.seeds:
                audited = seed == arguments.seeds[0]
                crafted = name in arguments.crafted
                make(arguments.folder, name, seed, engine, audited=audited, crafted=crafted)
    lines = [row(arguments.folder, name, arguments.seeds) for name in ordered(names)]
    table = "\n".join([*head(arguments.seeds), *lines])
    arguments.page.write_text(put_between(arguments.page.read_text("utf-8"), table), "utf-8")
    print(table)


def make(
    folder: Path, name: str, seed: int, engine: Engine, *, audited: bool, crafted: bool
) -> None:
    """Runs a configuration and audits the run, unless the folder already has both.

    Args:
        folder: The folder for the runs.
        name: The name of the configuration.
        seed: The seed of the run.
        engine: The object that keeps Ray running for the next run.
        audited: True if the run is audited.
        crafted: True if the attack by crafted models is carried out, too, which takes minutes.
    """
    place_of_run = place(folder, name, seed)
    if not (place_of_run / "result.json").exists():
        given = {"seed": seed, "out": str(place_of_run)}
        config = configuration.load(str(CONFIGS / f"{name}.yaml"), given)
        timed(f"{name}, seed {seed}: run", lambda: run(config, load_for(config), engine=engine))
    if audited and crafted and not (place_of_run / MORE).exists():
        timed(f"{name}: {MORE}", lambda: audit(place_of_run, ON_REQUEST, images=1, seconds=1200))
        (place_of_run / "attacks.json").rename(place_of_run / MORE)
    if audited and not (place_of_run / "attacks.json").exists():
        timed(f"{name}: attacks.json", lambda: audit(place_of_run, USUAL, images=8, seconds=600))


def load_for(config: Config) -> Strategy:
    """Returns the strategy of a configuration."""
    strategy = strategies.load_for(config)
    assert isinstance(strategy, Strategy)
    return strategy


def audit(run_folder: Path, names: Sequence[str], *, images: int, seconds: float) -> None:
    """Audits a run, as `simulate.py --attack` does."""
    settings = settings_of(run_folder)
    strategy = load_for(settings)
    for _ in attack_run(run_folder, settings, strategy, names, images, seconds=seconds):
        pass


def timed(what: str, work: Callable[[], object]) -> None:
    """Does something, and prints how many seconds it took."""
    started = time.perf_counter()
    work()
    print(f"{what} {time.perf_counter() - started:.0f} s", flush=True)


def place(folder: Path, name: str, seed: int) -> Path:
    """Returns the run folder of a configuration and a seed."""
    return folder / f"{name}-seed{seed}"


def audit_of(folder: Path, name: str, seed: int) -> list[dict[str, Any]]:
    """Returns the outcomes of both audits; none if the run was not audited."""
    run = place(folder, name, seed)
    if not (run / "attacks.json").exists():
        return []
    files = [run / name for name in ("attacks.json", MORE)]
    return [
        outcome
        for file in files
        if file.exists()
        for outcome in json.loads(file.read_text("utf-8"))["attacks"]
    ]


class Worst(NamedTuple):
    """The worst figure of an adversary: the figure with the largest gain over all its attacks.

    Attributes:
        gain: The gain.
        attack: The name of the attack.
        figure: The figure.
    """

    gain: float
    attack: str
    figure: Figure


def worst_of(outcomes: Sequence[dict[str, Any]], adversary: str) -> Worst | None:
    """Returns the worst judged figure of an adversary; None if it can carry out no attack.

    Args:
        outcomes: The outcomes, as `attacks.json` has them.
        adversary: The name of the adversary.
    """
    found = []
    for outcome in outcomes:
        for values in outcome["figures"] if outcome["adversary"] == adversary else ():
            figure = Figure(**values)
            if figure.gain is not None:
                found.append(Worst(figure.gain, outcome["attack"], figure))
    return max(found, key=lambda one: one.gain, default=None)


def cell(worst: Worst | None) -> str:
    """Returns a cell of the table.

    Example:
        >>> figure = Figure(name="right", value=99.6, floor=10, ceiling=100)
        >>> cell(Worst(0.996, "guess", figure))
        '**99.6** (10.0) `guess`'
        >>> cell(None)
        '–'
    """
    if worst is None:
        return NOTHING
    value = f"{worst.figure.value:.1f}"
    shown = f"**{value}**" if worst.gain >= WHOLE else value
    return f"{shown} ({worst.figure.floor:.1f}) `{worst.attack}`"


def row(folder: Path, name: str, seeds: Sequence[int]) -> str:
    """Returns a row of the table; its cells are empty if the run was not audited."""
    outcomes = audit_of(folder, name, seeds[0])
    if not outcomes:
        return f"| `{name}` | not audited |{' |' * len(ADVERSARIES)}"
    cells = {adversary: cell(worst_of(outcomes, adversary)) for adversary in ADVERSARIES}
    for outcome in outcomes:
        if outcome["verdict"] == "out of time":
            cells[outcome["adversary"]] += f"; `{outcome['attack']}` out of time"
    if cells[HOSTILE] == NOTHING and not (place(folder, name, seeds[0]) / MORE).exists():
        cells[HOSTILE] = "not tried"
    return f"| `{name}` | {accuracy(folder, name, seeds)} | {' | '.join(cells.values())} |"


def accuracy(folder: Path, name: str, seeds: Sequence[int]) -> str:
    """Returns the mean accuracy of the final model in percent, over the seeds that were run."""
    paths = [place(folder, name, seed) / "result.json" for seed in seeds]
    found = [100 * json.loads(p.read_text("utf-8"))["accuracy"] for p in paths if p.exists()]
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{spread}"


def head(seeds: Sequence[int]) -> list[str]:
    """Returns the head of the table."""
    several = f", seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f", seed {seeds[0]}"
    return [
        f"| configs/trust/ | accuracy %{several} | {' | '.join(ADVERSARIES)} |",
        "|---|--:" + "|--:" * len(ADVERSARIES) + "|",
    ]


def ordered(names: Sequence[str]) -> list[str]:
    """Returns the rows in the order of the table: by scope of the key, plain images first."""
    first = ("plain", "shared", "client", "image")
    return sorted(names, key=lambda name: (first.index(name.split("_")[0]), name))


def put_between(text: str, table: str) -> str:
    r"""Replaces the text between the two marks of a page.

    Example:
        >>> put_between(f"a\n{BEGIN}\nold\n{END}\nb", "new").splitlines()[1:4]
        ['<!-- what each adversary finds -->', 'new', '<!-- end -->']
    """
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        sys.exit(f"the page has no marks {BEGIN} and {END} around the table")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def seconds_table(folder: Path, names: Sequence[str], seed: int) -> str:
    """Returns a table: how many seconds each attack took, for all of its adversaries together."""
    lines = [f"| attack | {' | '.join(f'`{name}`' for name in names)} |"]
    lines.append("|---" + "|--:" * len(names) + "|")
    spent = {name: seconds_of(audit_of(folder, name, seed)) for name in names}
    for attack in ATTACKS:
        told = [f"{spent[n][attack]:.1f}" if attack in spent[n] else NOTHING for n in names]
        lines.append(f"| `{attack}` | {' | '.join(told)} |")
    totals = [f"{sum(spent[name].values()):.0f}" for name in names]
    counts = [str(len(spent[name])) for name in names]
    lines += [f"| all | {' | '.join(totals)} |", f"| attacks carried out | {' | '.join(counts)} |"]
    return "\n".join(lines)


def seconds_of(outcomes: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns the seconds of each attack that was carried out by at least one adversary."""
    spent: dict[str, float] = {}
    for outcome in outcomes:
        if outcome["figures"]:
            spent[outcome["attack"]] = spent.get(outcome["attack"], 0.0) + outcome["seconds"]
    return spent


if __name__ == "__main__":
    main()
