r"""Run a workflow from the command line, on a running ComfyUI or on one that is started for it.

    python -m inlay run insert_subject.json --set SubjectFinetune.steps=200 --set LoadImage.image=photo.png
    python -m inlay run insert_subject.json --each InlayLoadReferences.folder=subjects/ \
        --each LoadImage.image=rooms/ -o out/ --host http://gpu-1:8188 --host http://gpu-2:8188

WORKFLOW is a file in UI or API form, or a picture that ComfyUI saved. NODE in NODE.input=value is a node's
title, type or id. Pictures and folders on this machine are uploaded to the host. With --each, every
combination is run, each into its own folder. Existing results are not run again, so an interrupted batch
continues. NAME.json beside a picture or folder NAME may hold its settings: {"NODE.input": value}.

Exit codes: 0 done, 1 a run failed, 2 wrong arguments or files, 3 no host, 130 interrupted.
"""

import argparse
import json
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..common.files import check_writable
from .batch import Batch, Outcome
from .client import Client, Graph, HostGone, Interrupted, NodeFailed
from .errors import DONE, FAILED, NO_HOST, STOPPED, WRONG, HostError, nearest
from .jobs import GraphJob, plan
from .results import result_record, save_outputs
from .server import HostDied, Server, find_comfyui
from .terminal import Bars
from .workflow import Setting, as_graph, read_workflow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("workflow", type=Path, metavar="WORKFLOW")
    pair = {"action": "append", "default": [], "metavar": "NODE.input=VALUE"}
    add("--set", dest="sets", help="set a value in the workflow; may be repeated", **pair)
    add("--each", help="run once per value: a folder of pictures, a folder of folders, or a,b,c", **pair)
    add("--benchmark", metavar="NAME", help="run every case of a benchmark instead (see inlay evaluate)")
    add("--data", type=Path, metavar="DIR", help="the benchmark's folder")
    add(
        "--subjects",
        type=Path,
        metavar="DIR",
        help="folder of subjects, for a benchmark that has backgrounds only",
    )
    bindings = "which input takes a case's references, background, box, class or prompt"
    add("--take", action="append", default=[], metavar="FIELD=NODE.input", help=bindings)
    add(
        "-o",
        "--out",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="folder of the results (default: out)",
    )
    hosts = "a running ComfyUI; may be repeated (default: start one)"
    add("--host", dest="hosts", action="append", default=[], metavar="URL", help=hosts)
    add(
        "--comfyui",
        type=Path,
        metavar="DIR",
        help="the ComfyUI to start (default: COMFYUI_PATH, or the one this pack is installed in)",
    )
    add("--json", action="store_true", help="print one JSON object on stdout; progress goes to stderr")


def log(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def start_host(comfyui: Path | None, stack: ExitStack) -> str:
    """Start the installed ComfyUI, with its folders and custom nodes, until `stack` closes; return its URL.

    Raises:
        HostDied: if it does not start.
    """
    if comfyui and not (comfyui / "main.py").is_file():
        raise HostDied(f"--comfyui {comfyui}: there is no main.py in it; give the folder of a ComfyUI.")
    try:
        start = time.monotonic()
        host = comfyui.resolve() if comfyui else find_comfyui()
        # The installed host's input folder has the workflow's images, and its output folder outlives the
        # process, for files such as LoRAs. The host uses the last value of a repeated option.
        folders = ("--input-directory", str(host / "input"), "--output-directory", str(host / "output"))
        server = Server(comfyui=host, other_packs=True, extra=folders)
        stack.enter_context(server)
    except HostError as error:
        raise HostDied(str(error)) from error
    log(f"ComfyUI is up in {time.monotonic() - start:.0f} s; its log is {server.log}")
    return server.url


def first_definitions(hosts: list[str]) -> dict[str, Any]:
    """Return the node definitions of the first host that answers.

    Raises:
        HostGone: if none answers.
    """
    for url in hosts:
        try:
            return Client(url).object_info()
        except HostGone as error:
            log(str(error))
    raise HostGone("No host answers; start one, or correct --host.")


def run_one(job: GraphJob, url: str, out: Path) -> dict[str, Any]:
    """Run a job with a progress bar per node, save its files in `out` and return its report."""
    client = Client(url)
    for upload in job.uploads:
        upload.to(client)
    start = time.monotonic()
    result = client.run(job.graph, Bars(job.graph, sys.stderr))
    files = save_outputs(result, job.graph, out)
    facts = {"host": url, "seconds": round(time.monotonic() - start, 2), "folder": str(out)}
    return {"status": "finished", **facts, **result_record(result, job.graph, files)}


def run_batch(jobs: list[GraphJob], hosts: list[str], out: Path) -> dict[str, Any]:
    """Run the jobs that have no result yet and return the report of all."""
    ended = Counter()

    def on_job_done(outcome: Outcome) -> None:
        ended[outcome.state] += 1
        if outcome.state != "kept":
            name = " x ".join(outcome.job.labels)
            what = outcome.error or f"{outcome.seconds:.1f} s"
            log(f"  {ended.total()}/{len(jobs)}  {name}  {outcome.state}: {what}  ({outcome.host})")

    outcomes = Batch(jobs, hosts, out, on_job_done, log).run()
    counts = Counter(outcome.state for outcome in outcomes)
    status = "failed" if counts["failed"] else "incomplete" if counts["left"] else "finished"
    return {
        "status": status,
        "counts": dict(counts),
        "folder": str(out),
        "jobs": [*map(job_record, outcomes)],
    }


def job_record(outcome: Outcome) -> dict[str, Any]:
    """Return one job of a batch as JSON data."""
    files = outcome.facts.get("files", [])
    facts = {"labels": list(outcome.job.labels), "state": outcome.state, "files": files}
    details = {"host": outcome.host, "seconds": round(outcome.seconds, 2), "error": outcome.error}
    return facts | {name: value for name, value in details.items() if value}


def benchmark_jobs(
    options: argparse.Namespace, graph: Graph, sets: list[Setting], definitions: dict[str, Any]
) -> list[GraphJob]:
    """Return the jobs of a benchmark's cases.

    Raises:
        HostError: if the benchmark is unknown or cannot be read.
    """
    from ..evaluation.benchmark_datasets import READERS, read_cases  # imports torch
    from .benchmark import plan_cases, read_input_bindings

    if options.benchmark not in READERS:
        raise HostError(f"There is no benchmark {options.benchmark}: {nearest(options.benchmark, READERS)}")
    if not options.data:
        raise HostError("--benchmark: give its folder with --data DIR.")
    try:
        cases = read_cases(options.benchmark, options.data, options.subjects)
    except ValueError as error:
        raise HostError(str(error)) from error
    return plan_cases(graph, sets, cases, definitions, read_input_bindings(options.take))


def run_command(options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Run the command with options of `add_arguments`; return the exit code and the report."""
    document = read_workflow(options.workflow)
    sets, each = [list(map(Setting.parse, texts)) for texts in (options.sets, options.each)]
    with ExitStack() as stack:
        hosts = options.hosts or [start_host(options.comfyui, stack)]
        definitions = first_definitions(hosts)
        graph = as_graph(document, definitions)
        jobs = plan(graph, sets, each, definitions)
        check_out(options.out)
        if options.benchmark:
            jobs = benchmark_jobs(options, graph, sets, definitions)
        elif not each:
            return DONE, run_one(jobs[0], hosts[0], options.out)
        report = run_batch(jobs, hosts, options.out)
        code = {"finished": DONE, "failed": FAILED, "incomplete": NO_HOST}[report["status"]]
        return code, report


def check_out(folder: Path) -> None:
    """Check before the first job that results can be written.

    Raises:
        HostError: for a folder that cannot be written.
    """
    try:
        check_writable(folder)
    except OSError as error:
        raise HostError(
            f"--out: {folder} cannot be written ({error.strerror or error}); give another folder."
        ) from error


def print_result(report: dict[str, Any]) -> None:
    """Print the location of the results on stdout."""
    if "jobs" in report:
        log(", ".join(f"{count} {state}" for state, count in report["counts"].items()))
        print(report["folder"])
    for name, lines in report.get("text", {}).items():
        print(f"{name}: {' '.join(lines)}")
    for file in report.get("files", []):
        print(Path(report["folder"]) / file)


def raise_interrupt(*_) -> None:
    """Handle a signal as Ctrl-C."""
    raise KeyboardInterrupt


def attempt(options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Run `run_command` and convert errors to an exit code and a report with "error"."""
    try:
        return run_command(options)
    except KeyboardInterrupt:
        code, error = STOPPED, "Stopped; give the same command to continue."
    except (NodeFailed, Interrupted, OSError) as failure:
        code, error = FAILED, str(failure)
    except (HostGone, HostDied) as failure:
        code, error = NO_HOST, str(failure)
    except HostError as failure:
        code, error = WRONG, str(failure)
    return code, {"status": "stopped" if code == STOPPED else "failed", "code": code, "error": error}


def main(options: argparse.Namespace) -> int:
    """Run `python -m inlay run`; return the exit code."""
    signal.signal(signal.SIGTERM, raise_interrupt)
    signal.signal(signal.SIGINT, raise_interrupt)  # shells start background jobs with SIGINT ignored
    code, report = attempt(options)
    if "error" in report:
        log(report["error"])
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print_result(report)
    return code
