"""The command line: the same questions without a page.

Exit codes: 0 when the question was answered, 2 when the input was bad (one sentence on standard error),
130 when interrupted.  ``check`` answers with 0, 1 and 3 (see ``VERDICTS``).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from tqdm import tqdm

from explorer.errors import ExplorerError, unknown
from explorer.recipe import PRESETS
from explorer.session import Session
from explorer.sources import (
    NODE_SCORES,
    PACKAGED,
    TABLE_FORMATS,
    ZOO,
    Notes,
    atomic_write,
    junit,
    load_notes,
    load_recipe,
    node_data,
)
from explorer.study import (
    DEFAULT_FORMATS,
    ESTABLISHED,
    EXCLUDED,
    MEASURES,
    METHODS,
    METRICS,
    OWN,
    TENSOR_CHOICES,
    UNDECIDED,
    Check,
    Comparison,
    Diagnosis,
    Evaluation,
)
from explorer.study.depth import IMAGES as DEEP
from explorer.study.diagnosis import IMAGES as DIAGNOSED
from explorer.study.evaluate import finite
from explorer.study.metrics import Interval
from explorer.subject import DEFAULT_MODEL
from explorer.workers import Hands, connect

T = TypeVar("T")
NO_CLASSES = "results are no scores of classes"

VERDICTS = {EXCLUDED: 0, ESTABLISHED: 1, UNDECIDED: 3}
"""The exit codes of ``check``."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m explorer", description="Look into the quantization of a network."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("what is explored")
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="M",
        help=f"{', '.join((*ZOO, *PACKAGED))}, torchvision:NAME[:WEIGHTS], timm:NAME[.TAG], "
        "package.module:factory, file.py:factory, a program of torch.export (.pt2) or an ONNX model "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--device", default="cpu", metavar="D", help="cpu, cuda, cuda:N, or auto (default: %(default)s)"
    )
    group.add_argument(
        "--output",
        metavar="NAME",
        help="which result of a network that returns several: a name, an index, a.0",
    )
    group.add_argument(
        "--metric",
        metavar="METRIC",
        help=f"{', '.join(METRICS)}, file.py:function or package.module:function of (outputs, targets) that gives "
        "one score for each example (default: by the shape of the results)",
    )
    group.add_argument("--checkpoint", metavar="FILE", help="weights: safetensors or a state_dict")
    group.add_argument(
        "--download",
        action="store_true",
        help="fetch the weights that the model's name asks for (default: only from this machine)",
    )
    group.add_argument(
        "--data",
        metavar="D",
        help="a folder of images, an .npz, torchvision:NAME:FOLDER[:SPLIT], file.py:factory or a shipped name "
        "(default: the model's own)",
    )
    group.add_argument("--calibration", metavar="D", help="images that set the ranges of activations")
    group.add_argument(
        "--calibration-images", type=_positive, default=512, metavar="N", help="default: %(default)s"
    )
    group.add_argument(
        "--subset", type=_positive, metavar="N", help="explore N of the images, the same share of each class"
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="of the subset and of the order (default: %(default)s)",
    )
    group.add_argument(
        "--preprocess",
        nargs="+",
        metavar="KEY=VALUE",
        help="mean=0.5,0.5,0.5 std=0.25,0.25,0.25 resize=256 crop=224",
    )
    group.add_argument(
        "--no-fold", action="store_true", help="do not fold BatchNorm into the layer before it"
    )
    group.add_argument(
        "--store-bytes",
        type=_positive,
        metavar="N",
        help="memory for results (default: a quarter of what is free)",
    )
    group.add_argument(
        "--store-folder", metavar="FOLDER", help="keep results that take long for the next start"
    )
    group.add_argument(
        "--recipe",
        default="w8a8",
        metavar="R",
        help=f"{', '.join(PRESETS)}, or a file (default: %(default)s)",
    )
    kept = argparse.ArgumentParser(add_help=False)
    kept.add_argument(
        "--project", metavar="FOLDER", help="keep the configurations that are tried in this folder"
    )
    answer = argparse.ArgumentParser(add_help=False)
    answer.add_argument(
        "--json", metavar="OUT", help="write the result as JSON to this file (- for standard output)"
    )
    limited = argparse.ArgumentParser(add_help=False)
    limited.add_argument("--limit", type=_positive, metavar="N", help="evaluate on N images (default: all)")
    narrow = argparse.ArgumentParser(add_help=False)
    narrow.add_argument(
        "--interval",
        type=float,
        metavar="W",
        help="stop when the 95%% interval of the difference is W wide, as a share: 0.02 is two points",
    )

    spread = argparse.ArgumentParser(add_help=False)
    spread.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="compute on a Dask cluster: its scheduler's address, tcp://HOST:PORT or tls://HOST:PORT",
    )
    tables = argparse.ArgumentParser(add_help=False)
    for kind in TABLE_FORMATS:
        tables.add_argument(
            f"--{kind}", metavar="FILE", help=f"write the table to this file as {kind.upper()}"
        )
    nodes = argparse.ArgumentParser(add_help=False)
    nodes.add_argument(
        "--node-data", metavar="FILE", help="write a number for each layer for Model Explorer (JSON)"
    )

    listed = commands.add_parser(
        "layers", parents=[common, answer, tables, nodes], help="list the layers under a recipe"
    )
    measured = commands.add_parser(
        "evaluate",
        parents=[common, answer, limited, narrow, nodes, kept, spread],
        help="what a recipe does to accuracy, size and SQNR",
    )
    for command, first in ((listed, "weight_sqnr_db"), (measured, "input_sqnr_db")):
        command.add_argument(
            "--score",
            metavar="SCORE",
            help=f"which number --node-data writes: {', '.join(NODE_SCORES)} (default: {first})",
        )
    checked = commands.add_parser(
        "check",
        parents=[common, answer, limited, kept, spread],
        help="for a build server: exit code 0 when a larger drop than the one allowed is excluded, "
        "1 when it is established, 3 when the images cannot tell",
    )
    checked.add_argument(
        "--max-drop",
        type=float,
        required=True,
        metavar="POINTS",
        help="how much less than the float network's the accuracy may be: 0.5 is half a point "
        "(of a metric that is no percentage a number)",
    )
    checked.add_argument("--junit", metavar="FILE", help="write the result as JUnit's XML")
    against = commands.add_parser(
        "compare",
        parents=[common, answer, limited, narrow, spread],
        help="which of two recipes does better; of more, in what each two differ",
    )
    against.add_argument(
        "--against", required=True, nargs="+", metavar="R", help="other recipes: presets or files"
    )
    tried = commands.add_parser(
        "history", parents=[common, answer, tables], help="the configurations that a project folder has"
    )
    tried.add_argument("--project", metavar="FOLDER", required=True, help="the folder")
    sweep = commands.add_parser(
        "sensitivity",
        parents=[common, answer, limited, tables, nodes, spread],
        help="which layer suffers under which format",
    )
    sweep.add_argument(
        "--formats",
        metavar="F,F",
        help=f"{OWN} stands for each layer's own (default: {','.join(DEFAULT_FORMATS)})",
    )
    sweep.add_argument(
        "--method", default="exact", metavar="METHOD", help=f"{', '.join(METHODS)} (default: %(default)s)"
    )
    sweep.add_argument(
        "--measure",
        metavar="MEASURE",
        help=f"{', '.join(MEASURES)} (default: kl, without class scores error, or what the method measures)",
    )
    sweep.add_argument(
        "--tensor",
        default="weight",
        metavar="TENSOR",
        help=f"{', '.join(TENSOR_CHOICES)} (default: %(default)s)",
    )
    shares = commands.add_parser(
        "additivity", parents=[common, answer, limited], help="do the layers' own shares add up to the whole"
    )
    shares.add_argument(
        "--method", default="instant", metavar="METHOD", help="instant or exact (default: %(default)s)"
    )
    shares.add_argument(
        "--measure",
        metavar="MEASURE",
        help=f"{', '.join(MEASURES)} (default: kl, without class scores error)",
    )
    commands.add_parser(
        "depth",
        parents=[common, answer, limited],
        help=f"where the error is born and where it grows, layer by layer, on {DEEP} images or on --limit",
    )
    commands.add_parser(
        "diagnose",
        parents=[common, answer, limited, spread],
        help=f"what does not suit the tensors, and what changes do, tried on {DIAGNOSED} images or on --limit",
    )
    theirs = commands.add_parser(
        "foreign", parents=[common, answer], help="what another tool has chosen, beside the recipe"
    )
    theirs.add_argument(
        "--parameters",
        required=True,
        metavar="FILE",
        help="an ONNX model with quantizers, AIMET encodings, or a state_dict of PyTorch",
    )
    written = commands.add_parser(
        "report",
        parents=[common, limited, narrow, spread],
        help="one HTML file that opens offline: scores, layers, figures, recipe, fingerprints, notes",
    )
    written.add_argument("--out", required=True, metavar="FILE", help="the file that is written")
    written.add_argument(
        "--notes", metavar="FILE", help="a reviewer's notes (YAML: version, overall, layers)"
    )
    written.add_argument(
        "--sensitivity", metavar="METHOD", help=f"with the map, by {', '.join(METHODS)} (default: without)"
    )
    written.add_argument("--diagnose", action="store_true", help="with what the rules find")
    explicit = commands.add_parser(
        "resolve", parents=[common, answer], help="the ranges that objective: cross_entropy stands for"
    )
    explicit.add_argument("--yaml", metavar="OUT", help="write the explicit recipe to this file")
    serve = commands.add_parser("serve", parents=[common, kept, spread], help="open the page")
    serve.add_argument("--port", type=int, default=5006, help="default: %(default)s")
    serve.add_argument("--address", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument("--show", action="store_true", help="open a browser")
    shared = serve.add_argument_group(
        "for a team", "all options of panel serve are taken as well; see docs/serving.md"
    )
    shared.add_argument(
        "--max-sessions", type=_positive, metavar="N", help="browsers at a time (default: any number)"
    )
    shared.add_argument(
        "--max-upload", type=_positive, metavar="BYTES", help="largest file that the page takes"
    )
    shared.add_argument(
        "--max-memory",
        type=_positive,
        metavar="BYTES",
        help="no further browser while the process holds more",
    )
    shared.add_argument("--threads", type=_positive, metavar="N", help="of torch, shared by all sessions")
    return parser


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def _arguments(options: argparse.Namespace, executor: Hands | None = None) -> dict[str, Any]:
    return {
        "model": options.model,
        "data": options.data,
        "calibration": options.calibration,
        "checkpoint": options.checkpoint,
        "download": options.download,
        "preprocess": " ".join(options.preprocess) if options.preprocess else None,
        "recipe": load_recipe(options.recipe),
        "calibration_images": options.calibration_images,
        "subset": options.subset,
        "seed": options.seed,
        "fold": not options.no_fold,
        "store_bytes": options.store_bytes,
        "store_folder": options.store_folder,
        "project": getattr(options, "project", None),
        "output": options.output,
        "executor": executor,
        "metric": options.metric,
        "device": options.device,
    }


@contextmanager
def _cluster(options: argparse.Namespace) -> Iterator[Hands | None]:
    """The workers that were asked for; None without."""
    address = getattr(options, "cluster", None)
    if address is None:
        yield None
        return
    hands = connect(address, options.store_bytes)
    try:
        yield hands
    finally:
        hands.close()


def _last(steps: Iterator[T], total: int, done: Callable[[T], int]) -> T:
    """The last of the partial results, with a progress bar where someone watches."""
    with tqdm(
        total=total, unit="image", file=sys.stderr, disable=not sys.stderr.isatty(), leave=False
    ) as bar:
        result = None
        for result in steps:
            bar.update(done(result) - bar.n)
    assert result is not None
    return result


def _write(result: dict[str, Any], target: str | None) -> bool:
    """Write JSON where it is wanted; whether standard output is still free for people."""
    if target is None:
        return True
    text = json.dumps(finite(result), indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return False
    _save(text, target)
    return True


def _save(content: str | bytes, target: str) -> None:
    try:
        atomic_write(Path(target), content)
    except OSError as error:
        raise ExplorerError(
            f"The result cannot be written to {target!r}: {error.strerror or error}."
        ) from None


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): None if pd.isna(value) else value for key, value in record.items()}
        for record in table.to_dict("records")
    ]


def _write_tables(table: pd.DataFrame, options: argparse.Namespace) -> None:
    for kind, made in TABLE_FORMATS.items():
        if getattr(options, kind) is not None:
            _save(made(table), getattr(options, kind))


def _check_score(options: argparse.Namespace, usual: str, offered: Sequence[str]) -> str:
    """Which number goes to Model Explorer."""
    if options.score is None:
        return usual
    if options.node_data is None:
        raise ExplorerError("--score says what --node-data writes, and there is no --node-data FILE.")
    if options.score not in NODE_SCORES:
        raise ExplorerError(unknown("score", options.score, NODE_SCORES))
    if options.score not in offered:
        raise ExplorerError(f"The score {options.score} takes an evaluation: python -m explorer evaluate.")
    return options.score


def _write_nodes(session: Session, options: argparse.Namespace, values: Mapping[str, float | None]) -> None:
    """Values by layer for Model Explorer; layers without one are left out."""
    if options.node_data is not None:
        known = {name: float(value) for name, value in values.items() if not pd.isna(value)}
        _save(node_data(session.graph, known), options.node_data)


def _layers(session: Session, options: argparse.Namespace) -> None:
    table = session.layers()
    score = _check_score(options, "weight_sqnr_db", [str(name) for name in table])
    _write_tables(table, options)
    _write_nodes(session, options, dict(zip(table["name"], table[score], strict=True)))
    records = _records(table)
    for record, layer in zip(records, session.graph.layers, strict=True):
        record["shape"] = list(layer.shape)
    result = {"model": session.model_name, "layers": records, "data_facts": session.data_facts.to_dict()}
    if _write(result, options.json):
        print(table.drop(columns=["quantizable"]).to_string(index=False, na_rep="-", float_format="%.2f"))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _evaluate(session: Session, options: argparse.Namespace) -> None:
    node_score = _check_score(options, "input_sqnr_db", list(NODE_SCORES))
    total = session.subject.evaluation.count(options.limit)
    steps = session.evaluate_steps(None, options.limit, options.interval)
    result: Evaluation = _last(steps, total, lambda e: e.images)
    _write_nodes(session, options, {report.name: getattr(report, node_score) for report in result.layers})
    if not _write({**result.to_dict(), "data_facts": session.data_facts.to_dict()}, options.json):
        return
    print(f"{result.model} on {_seen(result)}; ranges from {result.calibration}")
    score, change = _score(result.unit), _change(result.unit)
    _line(result.score_name, score(result.top1), _interval(result.top1_interval, score))
    _line("float", score(result.top1_float))
    flips = f"   ({result.lost} right to wrong, {result.won} wrong to right)"
    if result.scores:
        flips = f"   ({result.lost} worse, {result.won} better)"
    _line("difference, paired", change(result.delta), _interval(result.delta_interval, change) + flips)
    if result.loss is not None and result.loss_float is not None:
        _line("loss", f"{result.loss:.4f} nats", f"float {result.loss_float:.4f}")
    if result.kl is not None and result.kl_interval is not None:
        _line("KL to float", f"{result.kl:.3g} nats", _interval(result.kl_interval, "{:.3g}".format))
    else:
        _line("KL to float", "-", NO_CLASSES)
    sqnr = _interval(result.output_sqnr_interval, "{:.2f}".format)
    _line("output SQNR", f"{result.output_sqnr_db:.2f} dB", sqnr)
    ratio = result.size_bytes_float / result.size_bytes
    _line("size", f"{result.size_bytes:,} bytes", f"float {result.size_bytes_float:,} ({ratio:.2f} times)")
    ratio = result.bops_float / max(result.bops, 1)
    _line("BOPs for one image", f"{result.bops:,}", f"float {result.bops_float:,} ({ratio:.2f} times)")
    facts = session.data_facts
    _line("images", " ".join(filter(None, (facts.chosen, facts.labels))))
    came = f" ({facts.preprocess_from})" if facts.preprocess_from else ""
    _line("preprocessing", "; ".join(facts.steps) or "none", came)


def _check(session: Session, options: argparse.Namespace) -> int:
    begun = time.perf_counter()
    share = session.metric.unit == "%"
    if share and not 0 <= options.max_drop < 100:
        raise ExplorerError(f"--max-drop is in points, from 0 to below 100, not {options.max_drop:g}.")
    total = session.subject.evaluation.count(options.limit)
    steps = session.check_steps(options.max_drop / (100 if share else 1), None, options.limit)
    result: Check = _last(steps, total, lambda check: check.evaluation.images)
    if options.junit is not None:
        e = result.evaluation
        held = {"recipe": e.recipe, "images": e.images, "delta": e.delta, "size_bytes": e.size_bytes}
        kinds = {ESTABLISHED: {"failure": ESTABLISHED}, UNDECIDED: {"error": UNDECIDED}}
        _save(
            junit(
                f"{e.model} on {e.data}",
                f"{options.recipe} drops by at most {options.max_drop:g}{' points' if share else ''}",
                result.sentence,
                time.perf_counter() - begun,
                properties=held,
                **kinds.get(result.verdict, {}),
            ),
            options.junit,
        )
    code = VERDICTS[result.verdict]
    if _write(
        {**result.to_dict(), "data_facts": session.data_facts.to_dict(), "exit_code": code}, options.json
    ):
        print(result.sentence)
    return code


def _compare(session: Session, options: argparse.Namespace) -> None:
    if len(options.against) > 1:
        _compare_many(session, options)
        return
    total = session.subject.evaluation.count(options.limit)
    steps = session.compare_steps(
        session.recipe, load_recipe(options.against[0]), options.limit, options.interval
    )
    result: Comparison = _last(steps, total, lambda c: c.images)
    if not _write(result.to_dict(), options.json):
        return
    print(f"{result.model}, {options.recipe} against {options.against[0]}, on {_seen(result)}")
    score, change = _score(result.unit), _change(result.unit)
    _line(result.score_name, f"{score(result.a.top1)} against {score(result.b.top1)}")
    flips = f"   ({result.won} right only in the first, {result.lost} only in the second)"
    if not session.metric.binary:
        flips = f"   ({result.won} better in the first, {result.lost} in the second)"
    _line("difference, paired", change(result.delta), _interval(result.delta_interval, change) + flips)
    nats = "{:+.3g}".format
    if result.kl_delta is not None and result.kl_interval is not None:
        _line("KL to float", f"{result.kl_delta:+.3g} nats", _interval(result.kl_interval, nats))
    else:
        _line("error of the result", f"{result.error_delta:+.3g}", _interval(result.error_interval, nats))
    if result.loss_delta is not None and result.loss_interval is not None:
        _line("loss", f"{result.loss_delta:+.3g} nats", _interval(result.loss_interval, nats))
    _line("size", f"{result.size_delta:+,} bytes", f"{result.a.size_bytes:,} against {result.b.size_bytes:,}")
    _line("BOPs for one image", f"{result.bops_delta:+,}", f"{result.a.bops:,} against {result.b.bops:,}")
    for difference in result.differences:
        print(f"  {difference}")
    print(result.verdict)


def _compare_many(session: Session, options: argparse.Namespace) -> None:
    if options.interval is not None:
        raise ExplorerError(
            "--interval stops a comparison of two recipes; of more, leave it out and use --limit."
        )
    names = [options.recipe, *options.against]
    recipes = [session.recipe, *map(load_recipe, options.against)]
    total = session.subject.evaluation.count(options.limit)
    for recipe in dict.fromkeys(recipes):
        _last(session.evaluate_steps(recipe, options.limit), total, lambda e: e.images)
    found = session.differences(recipes, options.limit, names)
    result = {"model": session.model_name, "data": session.data_name, "images": total, **found.to_dict()}
    if not _write(result, options.json):
        return
    print(f"{session.model_name} on {total:,} images of {session.data_name}")
    for pair in found.pairs:
        print(f"{pair.a} against {pair.b}: {pair.verdict}")
        if pair.delta is not None and pair.delta_interval is not None:
            change = _change(session.metric.unit)
            _line(
                session.metric.called(found.agreement),
                change(pair.delta),
                _interval(pair.delta_interval, change),
            )
        _line("size", f"{pair.size_delta:+,} bytes")
        _line("BOPs for one image", f"{pair.bops_delta:+,}")
    if found.rows:
        print(found.layers.to_string(index=False))


def _history(session: Session, options: argparse.Namespace) -> None:
    table = session.trials()
    _write_tables(table, options)
    result = {"model": session.model_name, "data": session.data_name, "rows": _records(table)}
    if not _write(result, options.json):
        return
    print(f"{session.model_name} on {session.data_name}; configurations in {options.project}: {len(table)}")
    if len(table):
        shown = table[["label", "top1", "delta_low", "delta_high", "images", "size_bytes", "bops", "time"]]
        print(shown.to_string(index=False, na_rep="-", float_format="%.4f"))


def _seen(result: Evaluation | Comparison) -> str:
    """How many images, and why not more."""
    text = f"{result.images:,} images of {result.data}"
    if result.interval_target is None:
        return text
    if not result.complete:
        return f"{text} (the interval is {result.stopped})"
    low, high = result.delta_interval
    wide = high - low > result.interval_target
    return f"{text} (all, and the interval is still wider than asked)" if wide else text


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points"


def _score(unit: str) -> Callable[[float], str]:
    """How a score of a metric is written."""
    return _percent if unit == "%" else "{:.5g}".format


def _change(unit: str) -> Callable[[float], str]:
    """How a difference of two scores is written."""
    return _points if unit == "%" else "{:+.3g}".format


def _interval(interval: Interval, shown: Callable[[float], str]) -> str:
    low, high = interval
    return f"95% interval {shown(low)} to {shown(high)}"


def _line(name: str, value: str, note: str = "") -> None:
    print(f"  {name:<22}{value}{'   ' + note if note else ''}")


def _sensitivity(session: Session, options: argparse.Namespace) -> None:
    total = session.subject.evaluation.count(options.limit)
    formats = None
    if options.formats is not None:
        formats = [word.strip() for word in options.formats.split(",") if word.strip()]
    tries = options.method not in METHODS or METHODS[options.method].formats
    if options.node_data is not None and tries and len(formats or DEFAULT_FORMATS) > 1:
        # Said before the sweep, which may take long.
        raise ExplorerError("Model Explorer shows one value for a node; name one format: --formats int4.")
    steps = session.sensitivity_steps(formats, options.measure, options.method, options.tensor, options.limit)
    table = _last(steps, total, lambda t: int(t["images"].min()) if len(t) else 0)
    _write_tables(table, options)
    _write_nodes(session, options, dict(zip(table["layer"], table["value"], strict=True)))
    rows = _records(table)
    for row in rows:
        row["interval"] = [row.pop("low"), row.pop("high")]
    result = {
        "model": session.model_name,
        "data": session.data_name,
        "images": int(table["images"].max()) if len(table) else 0,
        "rows": rows,
    }
    if _write(result, options.json):
        shown = table.drop(columns=["complete", "reason"])
        print(shown.to_string(index=False, float_format="%.4g", na_rep="-"))
        for row in rows:
            if row["reason"]:
                print(f"  {row['layer']} {row['format']}: {row['reason']}")


def _additivity(session: Session, options: argparse.Namespace) -> None:
    found = session.additivity(options.measure, options.method, options.limit)
    if not _write(found.to_dict(), options.json):
        return
    print(f"{session.model_name} on {found.images:,} images of {session.data_name}; measure: {found.measure}")
    for name, value in found.layers:
        _line(name, f"{value:.4g}")
    _line("sum, predicted", f"{found.predicted:.4g}", f"from {found.method} values of one layer at a time")
    low, high = found.interval
    _line("whole, measured", f"{found.measured:.4g}", f"95% interval {low:.4g} to {high:.4g}")


def _depth(session: Session, options: argparse.Namespace) -> None:
    total = session.subject.evaluation.count(options.limit or DEEP)
    table = _last(session.depth_steps(images=total), total, lambda t: int(t["images"].max()))
    rows = _records(table.drop(columns=["images", "complete"]))
    for row in rows:
        for kind in ("local", "cumulative"):
            row[f"{kind}_interval"] = [row.pop(f"{kind}_low"), row.pop(f"{kind}_high")]
    result = {"model": session.model_name, "data": session.data_name, "images": total, "layers": rows}
    if _write(result, options.json):
        print(
            f"SQNR of each layer's output, dB, on {total:,} images of {session.data_name}, with 95% intervals"
        )
        print(table.drop(columns=["images", "complete"]).to_string(index=False, float_format="%.2f"))


def _diagnose(session: Session, options: argparse.Namespace) -> None:
    images = options.limit or DIAGNOSED
    total = session.subject.evaluation.count(images)
    found: Diagnosis = _last(session.diagnose_steps(images=images), total, lambda d: d.images)
    result = {"model": session.model_name, "data": session.data_name, **found.to_dict()}
    if not _write(result, options.json):
        return
    print(
        f"{session.model_name} under {options.recipe}: {found.tensors} tensors looked at on {found.looked} "
        f"calibration images; changes tried on {found.images:,} images of {session.data_name}"
    )
    if found.top1 is None:
        print("The rules find nothing to change.")
        return
    if found.kl is not None:
        _line("KL to float", f"{found.kl:.3g} nats")
    if found.error is not None:
        _line(
            "error of the result", f"{found.error:.3g}", "squared, as a share of the float network's result"
        )
    for finding in found.findings:
        where = finding.layers[0] if len(finding.layers) == 1 else f"{len(finding.layers)} layers together"
        print(f"{where}, {finding.tensor} {finding.change}: {finding.verdict}")
        for words in finding.evidence:
            print(f"    {words}")
        if finding.harm_delta is not None and finding.top1_delta is not None:
            span = _interval(finding.harm_interval, "{:+.3g}".format)
            kl = finding.kl_delta
            what = f"KL {kl:+.3g} nats" if kl is not None else f"error {finding.harm_delta:+.3g}"
            change = _change(session.metric.unit)
            print(
                f"    {what} ({span}), {found.score_name} {change(finding.top1_delta)}, "
                f"{finding.size_delta:+,} bytes, on {finding.images:,} images"
            )


def _foreign(session: Session, options: argparse.Namespace) -> None:
    found = session.foreign(options.parameters)
    table = session.against(found)
    result = {
        "model": session.model_name,
        "source": found.source,
        "tool": found.tool,
        "rows": table.to_dict("records"),
        "left": [{"name": name, "reason": reason} for name, reason in found.left],
    }
    if not _write(result, options.json):
        return
    print(found.describe())
    if len(table):
        shown = table[["layer", "tensor", "scheme", "theirs", "sqnr_db", "sqnr_db_theirs", "elements", "how"]]
        shown.insert(6, "differing", table["differing"].astype("Int64"))
        print(shown.to_string(index=False, na_rep="-", float_format="%.2f"))
    for row in table.to_dict("records"):
        where = f"{row['layer']} {row['tensor']}"
        if row["agrees"]:
            print(f"  {where}: the smallest and largest value under {', '.join(row['agrees'])}")
        if row["note"]:
            print(f"  {where}: {row['note']}")
    for name, reason in found.left:
        print(f"  left: {name}: {reason}")


def _resolve(session: Session, options: argparse.Namespace) -> None:
    recipe = session.resolve()
    free = _write(recipe.to_dict(), options.json)
    if options.yaml is not None:
        _save(recipe.to_yaml(), options.yaml)
    elif free:
        print(recipe.to_yaml(), end="")


def _report(session: Session, options: argparse.Namespace) -> None:
    # Bokeh is imported where it is needed only.
    from explorer.views.report import report_html
    from explorer.views.reportfacts import gather

    notes = load_notes(options.notes) if options.notes is not None else Notes()
    notes.check(session.graph.by_layer)
    total = session.subject.evaluation.count(options.limit)
    evaluation = _last(
        session.evaluate_steps(None, options.limit, options.interval), total, lambda e: e.images
    )
    table, found = None, None
    if options.sensitivity is not None:
        rows = session.sensitivity_steps(None, None, options.sensitivity, "weight", options.limit)
        table = _last(rows, total, lambda t: int(t["images"].min()) if len(t) else 0)
    if options.diagnose:
        images = min(options.limit or DIAGNOSED, session.total_images)
        found = _last(session.diagnose_steps(images=images), images, lambda d: d.images)
    _save(report_html(gather(session, evaluation, table, found, notes=notes)), options.out)
    print(f"The report is in {options.out}.")


def _serve(options: argparse.Namespace, rest: Sequence[str], hands: Hands | None) -> None:
    from explorer.views.app import serve
    from explorer.views.limits import Limits, limits

    most = limits()
    wanted = {
        "sessions": options.max_sessions,
        "upload": options.max_upload,
        "memory": options.max_memory,
        "threads": options.threads,
    }
    most = Limits(**{name: value or getattr(most, name) for name, value in wanted.items()})
    where = {"port": options.port, "address": options.address, "show": options.show}
    serve(**where, most=most, panel=rest, **_arguments(options, hands))


def _warn(session: Session) -> None:
    """Say which images could not be read, where the result goes nowhere else."""
    subject = session.subject
    facts = dict.fromkeys((subject.data_facts.warning, subject.calibration_facts.warning))
    for warning in filter(None, facts):
        print(f"explorer: {warning}", file=sys.stderr)


QUESTIONS: dict[str, Callable[[Session, argparse.Namespace], int | None]] = {
    "layers": _layers,
    "evaluate": _evaluate,
    "check": _check,
    "compare": _compare,
    "history": _history,
    "sensitivity": _sensitivity,
    "additivity": _additivity,
    "resolve": _resolve,
    "depth": _depth,
    "diagnose": _diagnose,
    "foreign": _foreign,
    "report": _report,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "serve":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with _cluster(options) as hands:
            if options.command == "serve":
                _serve(options, rest, hands)
            else:
                session = Session(**_arguments(options, hands))
                code = QUESTIONS[options.command](session, options) or 0
                _warn(session)
                return code
    except ExplorerError as error:
        print(f"explorer: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130
    return 0
