"""Federated fine-tuning of a vision transformer on encrypted images, simulated on this machine."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402 - the clock starts before the imports
import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import difflib  # noqa: E402
import functools  # noqa: E402
import os  # noqa: E402
import shlex  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import textwrap  # noqa: E402
import threading  # noqa: E402
from collections.abc import Iterator, Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any, NoReturn  # noqa: E402

HERE = Path(__file__).resolve().parent
if __name__ == "__main__" and Path(sys.path[0]).resolve() == Path.cwd() != HERE:
    del sys.path[0]  # `python -m simulate` in a folder of somebody else imports nothing from there

from fl_vitlora import __version__, config  # noqa: E402
from fl_vitlora.config import confirmation, settings, yaml_text  # noqa: E402
from fl_vitlora.config.grid import Grid, is_grid, read_grid  # noqa: E402
from fl_vitlora.config.grid_words import is_several, read_seeds, read_words  # noqa: E402
from fl_vitlora.errors import UserError  # noqa: E402
from fl_vitlora.errors.abbreviations import flags_meant, meant  # noqa: E402
from fl_vitlora.reporting.output import outlive_readers  # noqa: E402

if TYPE_CHECKING:
    from fl_vitlora.experiment.watching import Watch

LONGEST_LINE = 1000
HELP_WIDTH = 74
USER_MISTAKE, RUN_FAILED, RULE_BROKEN, INTERRUPTED = 2, 1, 1, 130

FLAGS = {
    "--clients": ("clients", "Number of clients; each holds a shard of encrypted images (20)"),
    "--rounds": ("rounds", "Number of rounds of federated training (20)"),
    "--fraction": ("fraction", "Share of the clients that train in a round (1.0)"),
    "--min-clients": ("min_clients", "Fewest usable updates that a round needs (1)"),
    "--strategy": ("strategy.name", "A file in strategies/ or package.module:Class (fedavg)"),
    "--method": (
        "finetuning.method",
        "A sum of parts: lora, patch_embed, head, full, bias, norm, dora, ... (lora+patch_embed)",
    ),
    "--dataset": ("data.name", "digits, a Hugging Face data set, or a local path (digits)"),
    "--model": ("model.name", "vit_letters_16 or any timm ViT (vit_letters_16)"),
    "--partition": ("data.partition", "dirichlet, iid, pathological, shard or natural (dirichlet)"),
    "--budget": ("budget", "Bytes that the run may send, for example 50MB (no limit)"),
    "--target-accuracy": (
        "target_accuracy",
        "Tell after how many bytes this test accuracy was first reached, for example 0.95 (none)",
    ),
    "--seed": ("seed", "Seed of everything random except the owner's secret (0)"),
    "--checkpoint-every": ("checkpoint_every", "Number of rounds between two checkpoints (1)"),
    "--out": ("out", "Folder of the run or of the comparison (a new one under runs/)"),
    "--device": ("engine.device", "auto, cpu or cuda (auto)"),
    "--cohort": ("engine.cohort", "Clients that a worker trains in one batch (an eighth)"),
    "--workers": ("engine.workers", "Number of worker processes (one a core, up to four a GPU)"),
    "--ray-address": ("engine.ray_address", "Address of a running Ray cluster (start Ray here)"),
}

TEXTS = {  # taken as they are typed
    "strategy.name",
    "data.name",
    "model.name",
    "out",
    "budget",
    "engine.ray_address",
}

MAY_CHANGE = (  # in a run that goes on: no bit of it depends on who works, and files may move
    "encryption.key_file",
    "model.weights",
    "engine.workers",
    "engine.ray_address",
    "engine.round_timeout",
    "engine.client_timeout",
    "checkpoint_every",
)

EXAMPLES = """examples:
  python simulate.py --clients 20
      the main job: 20 clients, encrypted digits, LoRA + patch embedding
  python simulate.py --method full --seed 1
      the same with full fine-tuning, for comparison
  python simulate.py --set 'encryption.steps=[]'
      the same on plain images
  python simulate.py --strategy fedprox --set strategy.mu=0.1
      another strategy and its parameter
  python simulate.py --strategy flwr.serverapp.strategy:FedAdam \\
    --set strategy.eta=0.01
      any strategy of Flower, unmodified
  python simulate.py --config configs/thousand_fold.yaml
      a thousandth of the bytes: compressed tensors in both directions
  python simulate.py --set compression.uplink=int4 --budget 5MB \\
    --target-accuracy 0.9
      other codecs, a limit on bytes, and the bytes until 90 % accuracy
  python simulate.py --check-strategy my_idea --set strategy.rate=0.5
      test strategies/my_idea.py against the contract, rule by rule, in seconds
  python simulate.py --config configs/cifar10_vit_base.yaml
      ViT-B/16 on CIFAR-10, for a machine with a GPU

  python simulate.py --resume runs/NAME
      continue an interrupted run, to the same bits

  python simulate.py --rotate-key runs/NAME/shards
      for the data owner: draw a new secret and encrypt all shards under it

  python simulate.py --storage-keys runs/NAME/shards --out keys/storage
      the owner's part: a key for each deployed node, which opens its shard file

comparisons:
  python simulate.py --compare head lora lora+patch_embed full --seeds 0-4
      four methods with five seeds each: a table, plots and all runs in a folder
  python simulate.py --compare head lora \\
    'encryption.steps=[],[pixel_shuffling],EtC'
      every combination of two methods and three encryptions
  python simulate.py --config configs/grids/default_job.yaml \\
    --out runs/default_job
      a comparison from a file; the same command again continues it

all settings with their defaults, for --set PATH=VALUE and for YAML files:
"""


class Parser(argparse.ArgumentParser):
    """Says in one line what was wrong, and what comes nearest."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        words = message.removeprefix("unrecognized arguments: ").split()
        if not words:
            fail(f"{message}'' (see --help)", USER_MISTAKE)
        wrong = words[0]
        near = self._nearest(wrong.partition("=")[0]) if wrong.startswith("-") else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        if not wrong.startswith("-"):
            hint = "; --compare takes several values of a setting, and --seeds several seeds"
        fail(f"{message}{hint} (see --help)", USER_MISTAKE)

    def _nearest(self, wrong: str) -> list[str]:
        """Finds the flags that may have been meant, or the settings that have no flag."""
        of_path = {path: flag for flag, (path, _) in FLAGS.items()}
        paths = meant(wrong.lstrip("-"), config.paths())
        found = [of_path.get(path) or f"--set {path}=VALUE" for path in paths]
        close = difflib.get_close_matches(wrong, self._option_string_actions, n=1)
        return found or flags_meant(wrong) or close


def fail(message: str, code: int) -> NoReturn:
    """Prints one line, whatever is in it, and ends the program."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    print(f"simulate.py: {line}", file=sys.stderr)
    raise SystemExit(code)


def make_parser() -> Parser:
    """Describes the command line."""
    parser = Parser(
        prog="simulate.py",
        description=textwrap.fill(str(__doc__), HELP_WIDTH),
        epilog=EXAMPLES + explained(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for flag, (path, explanation) in FLAGS.items():
        parser.add_argument(flag, dest=path, metavar="VALUE", help=explanation)
    parser.add_argument(
        "--config", metavar="FILE", help="Read settings from a YAML file; flags override it"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="Set any setting, for example training.epochs=2; may be given several times",
    )
    parser.add_argument(
        "--compare",
        metavar="AXIS",
        nargs="+",
        help="Compare methods or strategies by their names, or PATH=V1,V2,... for any setting; "
        "several axes are combined",
    )
    parser.add_argument(
        "--seeds",
        metavar="SEED",
        nargs="+",
        help="Run everything with each of these seeds: 0 1 2, 0,1,2 or 0-2",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        type=place,
        help="Continue the run in this folder from its last checkpoint, to the same bits. Ctrl-C "
        "ends a run or a comparison after the current round; a second Ctrl-C ends it at once",
    )
    parser.add_argument(
        "--rotate-key",
        metavar="PLACE",
        nargs="+",
        type=place,
        help="Draw a new secret and encrypt shards, or folders of shards, again under it; trains "
        "nothing. encryption.key_file names the key ring, which keeps its old secrets",
    )
    parser.add_argument(
        "--storage-keys",
        metavar="PLACE",
        nargs="+",
        type=Path,
        help="write for each party that has shards at these places the key that opens its files at "
        "rest, and no image in them, to the folder --out; a deployed node is given its file",
    )
    parser.add_argument(
        "--check-strategy",
        metavar="NAME",
        help="Show the parameters of a strategy, named as for --strategy, and test it against the "
        "rules of the contract; runs nothing",
    )
    parser.add_argument(
        "--check-method",
        metavar="NAME",
        help="Show the parts of a fine-tuning method, named as for --method or by a Python file, "
        "and test it against the rules of the contract; runs nothing",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="Show the messages of Flower and Ray"
    )
    parser.add_argument(
        "--trust-strategy",
        metavar="NAME",
        nargs="+",
        help="Allow a file to name these strategies, package.module:Class, and run their code; "
        "strategies of this project and of Flower, and the one that --strategy names, need no "
        "permission",
    )
    parser.add_argument("--version", action="version", version=f"fl_vitlora {__version__}")
    return parser


def place(text: str) -> Path:
    """Reads a path of the command line; a shell leaves the ``~`` of ``--resume=~/run`` as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - as a shell, where no home is known


def explained() -> str:
    """Lists every setting with its default, folded to 80 columns."""
    lines = []
    for path, default, explanation in settings.explanations(config.Config):
        told = "" if default in (None, "") else f" = {plain(default)}"
        folded = textwrap.wrap(explanation, HELP_WIDTH, break_long_words=False)
        lines += [f"  {path}{told}", *(f"      {line}" for line in folded)]
    return "\n".join(lines) + "\n"


def plain(value: Any) -> str:
    """Writes a default as one would write it behind `--set`."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def read_config(arguments: argparse.Namespace) -> config.Config:
    """Puts file, flags and `--set` together, the later over the earlier."""
    return config.load(arguments.config, read_overrides(arguments))


def read_comparison(arguments: argparse.Namespace) -> Grid | None:
    """Does the same for a comparison, if one is asked for by flags or by the file."""
    tree = {} if arguments.config is None else yaml_text.read_yaml(arguments.config)
    if arguments.compare:
        import strategies

        tree["compare"] = read_words(arguments.compare, strategies.available())
    if arguments.seeds:
        tree["seeds"] = read_seeds(arguments.seeds)
    return read_grid(tree, read_overrides(arguments)) if is_grid(tree) else None


def read_strategy(arguments: argparse.Namespace) -> config.StrategyConfig:
    """Does the same for the strategy that is to be checked."""
    overrides, name = read_overrides(arguments), arguments.check_strategy
    for twice in {"strategy", "strategy.name"} & overrides.keys():
        raise UserError(
            f"--check-strategy {name} names the strategy, so it does not take "
            f"{twice}={overrides[twice]}"
        )
    return config.load(arguments.config, overrides | {"strategy.name": name}).strategy


def read_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Gathers flags and `--set`, the later over the earlier."""
    given = vars(arguments)
    overrides: dict[str, Any] = {}
    if given["seed"] is not None and is_several(given["seed"]):
        raise UserError(f"--seed {given['seed']} names several seeds: --seeds {given['seed']}")
    for flag, (path, _) in FLAGS.items():
        if given[path] is not None and path in TEXTS:
            overrides[path] = given[path]
        elif given[path] is not None:
            try:
                overrides |= [yaml_text.parse_override(f"{path}={given[path]}")]
            except UserError as error:
                raise UserError(f"{flag}: {error}") from None
    return overrides | dict(yaml_text.parse_override(text) for text in arguments.overrides)


def confirmed_by(arguments: argparse.Namespace) -> frozenset[str]:
    """Gathers all texts that were typed as values; code or a cluster among them is confirmed."""
    typed = [read_overrides(arguments), read_words(arguments.compare or ())]
    named = [arguments.trust_strategy or (), arguments.check_strategy]
    return frozenset(confirmation.texts_in([*typed, *named]))


def run(
    experiment: config.Config, confirmed: frozenset[str], *, resume: bool = False, verbose: bool
) -> None:
    """Runs an experiment before the user's eyes."""
    confirmation.check_confirmed(experiment, confirmed)
    import strategies
    from fl_vitlora.experiment.runner import PausedError, silence
    from fl_vitlora.experiment.runner import run as run_experiment
    from fl_vitlora.experiment.watching import Watch
    from fl_vitlora.reporting.console import RunDisplay
    from fl_vitlora.reporting.result_table import print_result
    from fl_vitlora.reporting.run_folder import default_path

    if not verbose:
        silence()
    strategy = strategies.load_for(experiment, confirmed)
    experiment = dataclasses.replace(
        experiment, out=experiment.out or str(default_path(experiment))
    )
    try:
        with RunDisplay(experiment.rounds) as display:
            watch = Watch(
                announce=display.announce,
                note=display.note,
                show_round=display.show_round,
                tap=display.show_message,
                verbose=verbose,
            )
            with pauses_on_signal(watch):
                result, folder = run_experiment(experiment, strategy, watch, STARTED, resume=resume)
    except PausedError as pause:
        fail(f"ended {pause}; {how_to_go_on(experiment)}", INTERRUPTED)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; {how_to_go_on(experiment)}") from None
    except RuntimeError as error:
        raise RuntimeError(f"{error}; {how_to_go_on(experiment)}") from error
    print_result(result, str(folder))


def how_to_go_on(experiment: config.Config) -> str:
    """Tells the command that takes a run up again, or that there is nothing to take up."""
    from fl_vitlora.reporting.run_folder import CONFIG

    begun = (Path(str(experiment.out)) / CONFIG).exists()
    folder, flags = shlex.quote(str(experiment.out)), confirmation.flags_for(experiment)
    command = f"python simulate.py --resume {folder}{flags}"
    return f"{command} goes on" if begun else "nothing was begun"


@contextlib.contextmanager
def pauses_on_signal(watch: Watch) -> Iterator[None]:
    """Lets the first signal to end a run do so after its round; the next at once.

    Before a run's first round there is nothing to wait for, and the first does so at once. Python
    sets handlers in its main thread only, so that a run in another thread goes without.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heed(number: int, frame: object) -> None:
        if watch.pause.is_set() or not watch.training.is_set():
            raise KeyboardInterrupt
        watch.pause.set()
        watch.announce("ending after this round; once more to end at once")

    before = {number: signal.signal(number, heed) for number in heeded_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heeded_signals() -> Iterator[signal.Signals]:
    """Names Ctrl-C, SIGTERM and, but under `nohup`, the end of a terminal."""
    yield from (signal.SIGINT, signal.SIGTERM)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        yield signal.SIGHUP


def resume(arguments: argparse.Namespace) -> None:
    """Goes on with a run; one that is at its end is shown."""
    from fl_vitlora.checkpoints.logbook import remove as remove_checkpoints
    from fl_vitlora.reporting.result_table import print_result
    from fl_vitlora.reporting.run_folder import find_run, located

    folder = arguments.resume
    begun, result = find_run(folder)
    overrides = read_overrides(arguments) | {"out": str(folder)}
    if arguments.config:
        asked = config.load(arguments.config, overrides)
    else:
        asked = config.resolve(config.to_mapping(begun), overrides)
    told = "; ".join(
        f"{path} is {was} there, not {now}"
        for path, (was, now) in config.differences(begun, asked).items()
        if path not in MAY_CHANGE
    )
    if told and result is not None:
        raise UserError(
            f"--resume {folder}: this run is finished, and its settings differ: {told}; begin a "
            "new run with another --out, or leave these settings out to see the result"
        )
    if told:
        raise UserError(
            f"--resume {folder}: {told}; a run goes on as it was begun (what may change: "
            f"{', '.join(MAY_CHANGE)})"
        )
    if result is not None:
        remove_checkpoints(folder)  # it may have been killed just before it did
        print_result(result, str(folder))
        return
    run(
        located(asked, begun, folder),
        confirmed_by(arguments),
        resume=True,
        verbose=arguments.verbose,
    )


def compare(grid: Grid, confirmed: frozenset[str], *, verbose: bool) -> None:
    """Runs a comparison before the user's eyes."""
    for cell in grid.cells:
        confirmation.check_confirmed(cell.config, confirmed)
    import strategies
    from fl_vitlora.experiment import comparison
    from fl_vitlora.experiment.runner import PausedError, silence
    from fl_vitlora.experiment.watching import Watch
    from fl_vitlora.reporting.comparison_tables import describe, print_report
    from fl_vitlora.reporting.console import ComparisonDisplay

    if not verbose:
        silence()
    folder = Path(grid.out) if grid.out else comparison.default_folder()
    load = functools.partial(strategies.load_for, confirmed=confirmed)
    again = f"the same command with --out {shlex.quote(str(folder))} goes on"
    records = []
    try:
        with (
            comparison.prepare_folder(folder, grid),
            ComparisonDisplay(len(grid.runs)) as display,
        ):
            watch = Watch(
                announce=display.announce,
                note=display.note,
                show_round=display.show_round,
                tap=display.show_message,
                verbose=verbose,
            )
            with pauses_on_signal(watch):
                for record in comparison.compare(grid, folder, load, watch):
                    display.show_run(describe(record))
                    records.append(record)
    except PausedError as pause:
        fail(f"ended {pause}; {again}", INTERRUPTED)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; {again}") from None
    print_report(comparison.tell(grid, records), str(folder))
    if any(record.failed for record in records):
        fail("a run failed; the table says which and why", RUN_FAILED)
    if not any(record.result for record in records):
        fail("nothing ran; the table says why", USER_MISTAKE)


def rotate_key(experiment: config.Config, places: Sequence[Path]) -> None:
    """Encrypts shards anew under a new secret of the key ring."""
    from fl_vitlora.experiment import preparation

    name, shards = preparation.rotate_key(experiment, places)
    print(f"encrypted anew under key {name}: {len(shards)} shards")


def storage_keys(experiment: config.Config, places: Sequence[Path]) -> None:
    """Writes the storage keys of shards, one file for each party."""
    from fl_vitlora.experiment import preparation

    if experiment.out is None:
        raise UserError("--storage-keys needs a folder to write to: --out FOLDER")
    files = preparation.hand_out_keys(experiment, places, Path(experiment.out))
    print(f"storage keys in {experiment.out}: {', '.join(file.name for file in files)}")


def check_strategy(
    chosen: config.StrategyConfig, confirmed: frozenset[str], *, verbose: bool
) -> None:
    """Holds a strategy to every rule of the contract, before the user's eyes."""
    confirmation.check_strategy(chosen, confirmed)
    import strategies
    from fl_vitlora.experiment.runner import silence
    from fl_vitlora.reporting.findings import print_findings
    from fl_vitlora.strategy import Strategy
    from fl_vitlora.testing import findings, rules_for, understood

    if not verbose:
        silence()
    strategy = strategies.load(chosen.name, chosen.options)
    if isinstance(strategy, Strategy):
        found, rules = findings(strategy), len(rules_for(strategy))
        told = [repr(strategy), *understood(strategy)]
    else:
        found, rules, told = strategies.check_flower(chosen.name, chosen.options)
    print_findings(told, found, untried=rules - len(found))
    if any(problem for _, problem in found):
        raise SystemExit(RULE_BROKEN)


def check_contract(arguments: argparse.Namespace) -> None:
    """Tests the strategy or the fine-tuning method that a flag names."""
    if arguments.check_method is not None:
        check_method(arguments.check_method, read_overrides(arguments))
    else:
        chosen = read_strategy(arguments)
        check_strategy(chosen, confirmed_by(arguments), verbose=arguments.verbose)


def check_method(name: str, overrides: Mapping[str, Any]) -> None:
    """Tests a fine-tuning method against every rule of the contract, and prints the findings."""
    from fl_vitlora.reporting.findings import print_findings
    from fl_vitlora.testing.method_report import named, report

    chosen = config.load(None, {**overrides, "finetuning.method": named(name)}).finetuning
    told, found, untried = report(chosen)
    print_findings(told, found, untried=untried)
    if any(finding.problem for finding in found):
        raise SystemExit(RULE_BROKEN)


def check_flags(given: Mapping[str, Any]) -> None:
    """Refuses flags that say what to run beside one that runs nothing, or what was begun."""
    whys = {
        "check_strategy": "runs nothing",
        "check_method": "runs nothing",
        "rotate_key": "runs nothing",
        "storage_keys": "runs nothing",
        "resume": "goes on with one run",
    }
    beside = ("compare", "seeds", "rotate_key", "storage_keys", "resume")
    for one, why in whys.items():
        others = [name for name in beside if given[name] and name != one]
        if given[one] is not None and others:
            flags = [f"--{name.replace('_', '-')}" for name in (one, others[0])]
            fail(f"{flags[0]} {why}, so it does not take {flags[1]}", USER_MISTAKE)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, runs, and turns errors into one line and an exit code."""
    outlive_readers()
    arguments = make_parser().parse_args(argv)
    check_flags(vars(arguments))
    try:
        if arguments.check_strategy is not None or arguments.check_method is not None:
            check_contract(arguments)
            return
        if arguments.resume is not None:
            resume(arguments)
            return
        grid = read_comparison(arguments)
        if arguments.rotate_key:
            rotate_key(grid.shared if grid else read_config(arguments), arguments.rotate_key)
        elif arguments.storage_keys:
            storage_keys(read_config(arguments), arguments.storage_keys)
        elif grid is not None:
            compare(grid, confirmed_by(arguments), verbose=arguments.verbose)
        else:
            run(read_config(arguments), confirmed_by(arguments), verbose=arguments.verbose)
    except UserError as error:
        fail(str(error), USER_MISTAKE)
    except RuntimeError as error:
        if arguments.verbose:
            raise
        fail(f"the run failed: {error} (more with --verbose)", RUN_FAILED)
    except OSError as error:  # a place that the user named, or the disk
        if arguments.verbose or error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror} (more with --verbose)", USER_MISTAKE)
    except KeyboardInterrupt as stop:
        print(f"simulate.py: interrupted{stop}", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # a thread of Flower may wait for a Ray that is gone, for ever


if __name__ == "__main__":
    main()
