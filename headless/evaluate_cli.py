"""Score folders of results against a benchmark, or against the inputs they were made from.

    python -m inlay evaluate out/ --dino dino-vits16/ --clip clip-vit-large-patch14/
    python -m inlay evaluate ours/ theirs/ --benchmark murecom --data MureCom/ --dino dino-vits16/ -o scores

RESULTS holds one picture for every case, under the case's name. Each folder is a row of the table; each cell
is a mean over pictures with its standard error. Weights are your own folders in transformers' layout; a
measure without weights is left out. SSIM needs none.
"""

import argparse
import json
import sys
from pathlib import Path

from ..common.files import atomic_write, check_writable
from ..evaluation import BENCHMARKS

LPIPS = ("alex", "vgg", "squeeze")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    folder = {"type": Path, "metavar": "DIR"}
    add(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULTS",
        help="a folder of results; each is one row of the table",
    )
    add(
        "--benchmark",
        choices=BENCHMARKS,
        default="batch",
        help="default: batch, the output of inlay run --each",
    )
    add("--data", help="the benchmark's folder (default: the results')", **folder)
    add("--subjects", help="folder of subjects, for a benchmark that has backgrounds only", **folder)
    add("--picture", metavar="NAME", help="which picture to score, if a result is a folder of several")
    add("--dino", help="DINO, DINOv2 or DINOv3: similarity of the subject", **folder)
    add("--clip", help="CLIP: similarity of the subject, and of picture and prompt", **folder)
    add("--lpips", choices=LPIPS, help="backbone of LPIPS, from torch's folder of checkpoints")
    add("--dreamsim", help="DreamSim's weights; its package must be installed", **folder)
    add("--fid", help="real pictures: FID between them and all results", **folder)
    add(
        "--fid-weights",
        type=Path,
        metavar="FILE",
        help="torch-fidelity's Inception weights (default: use --dino or --clip)",
    )
    add("-o", "--out", type=Path, metavar="NAME", help="write NAME.md and NAME.json")


def evaluate(options: argparse.Namespace):
    """Score the folders.

    Returns:
        The table, and row -> case -> measure -> value.

    Raises:
        ValueError: with a sentence for the user.
    """
    from ..evaluation.benchmark_datasets import read_cases  # imports torch, as all below does
    from ..evaluation.tables import Table

    data = options.data or options.results[0]
    cases = read_cases(options.benchmark, data, options.subjects)
    measures, notes = load_measures(options)
    rows, scores, sets = {}, {}, {}
    for folder in options.results:
        label = folder.resolve().name
        if label in rows:
            label = str(folder)
        own = cases if options.data or folder == data else read_cases(options.benchmark, folder, None)
        scores[label] = score(folder, own, measures, options.picture)
        rows[label] = by_measure(scores[label])
        if options.fid:
            name, value = frechet(folder, own, options, measures)
            sets[label] = {name: value}
    if not any(rows.values()) and not sets:
        raise ValueError("Nothing can be measured; name weights with --dino or --clip.")
    notes = [f"{options.benchmark}, {len(cases)} cases; mean and standard error over pictures.", *notes]
    return Table("Is it the subject, and is the rest left alone?", rows, notes, sets), scores


def load_measures(options: argparse.Namespace):
    """Load the measures whose weights are given; also return notes for the table that name these weights."""
    from ..evaluation.distances import load_dreamsim
    from ..evaluation.encoders import ClipEncoder, load_image_text_encoder
    from ..evaluation.score import Measures

    device = best_device()
    measures, notes = Measures(lpips=options.lpips), []
    for name, folder in (("DINO", options.dino), ("CLIP-I", options.clip)):
        if folder:
            measures.encoders[name] = load_image_text_encoder(folder, device)
            notes.append(f"{name}: {measures.encoders[name].name}, the subject's own region.")
    clip = measures.encoders.get("CLIP-I")
    if isinstance(clip, ClipEncoder):
        measures.clip = clip
    if options.lpips:
        notes.append(f"LPIPS: {options.lpips}, outside the hole, towards the original.")
    if options.dreamsim:
        measures.dreamsim = load_dreamsim(options.dreamsim, device)
        notes.append("DreamSim: its ensemble, the subject's own region; a distance.")
    return measures, notes


def best_device() -> str:
    """Return "cuda", "mps" or "cpu", the first that is available."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def score(folder: Path, cases, measures, stem: str | None) -> dict[str, dict[str, float]]:
    """Return case -> measure -> value for one folder of results, and print progress on stderr."""
    from ..evaluation.score import score_folder

    def show_progress(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r  {folder.name}: {done} of {len(cases)}", end="", file=sys.stderr, flush=True)

    scores = score_folder(folder, cases, measures, stem, show_progress)
    print(f"\r  {folder.name}: {len(scores)} of {len(cases)} cases have a result", file=sys.stderr)
    return scores


def by_measure(scores: dict[str, dict[str, float]]) -> dict[str, list[float]]:
    """Convert case -> measure -> value to measure -> values."""
    names = dict.fromkeys(name for values in scores.values() for name in values)
    return {name: [values[name] for values in scores.values() if name in values] for name in names}


def frechet(folder: Path, cases, options: argparse.Namespace, measures) -> tuple[str, float]:
    """Return the measure's name and value: FID, or a Frechet distance named after its encoder."""
    from ..evaluation.benchmark_datasets import pictures
    from ..evaluation.distances import frechet_distance
    from ..evaluation.score import find_results, load_picture

    network = options.fid_weights or next(iter(measures.encoders.values()), None)
    if network is None:
        raise ValueError("--fid: name the weights too, with --fid-weights, --dino or --clip.")
    results = (result for case in cases for result in find_results(folder, case, options.picture))
    value = frechet_distance(map(load_picture, results), map(load_picture, pictures(options.fid)), network)
    return ("FID" if options.fid_weights else f"Frechet ({network.name})"), value


def write_tables(table, scores: dict, out: Path) -> None:
    """Write NAME.md and NAME.json; the JSON file also has the measures of every case."""
    document = json.loads(table.to_json()) | {"cases": scores}
    # with_suffix would remove the end of a name such as scores-0.7
    texts = {"md": table.markdown(), "json": json.dumps(document, indent=1)}
    for suffix, text in texts.items():
        file = out.with_name(f"{out.name}.{suffix}")
        atomic_write(file, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))


def main(options: argparse.Namespace) -> int:
    """Run `python -m inlay evaluate`; return the exit code: 0, or 2 for wrong arguments or missing files."""
    try:
        if options.out:
            check_writable(options.out.parent)  # before anything is measured
        table, scores = evaluate(options)
        print(table.markdown())
        if options.out:
            write_tables(table, scores, options.out)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}it cannot be read or written ({error.strerror or error}).", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed here; pip install {error.name}.", file=sys.stderr)
        return 2
    return 0
