"""Watch a real ComfyUI put a subject, learned from a few pictures, into a new picture.

Without arguments: the tiny world's model and pictures, which need no download. With your own:

    python dev.py demo --checkpoint sd15-inpainting.safetensors --references my_dog/ --class-name dog
                       --background sofa.jpg --box 200,150,320,300
"""

import argparse
import io
import os
import signal
import sys
import time
from pathlib import Path

from PIL import Image

from ..headless import Client, HostError, NodeFailed, PromptRefused, PromptResult, Server
from ..headless.terminal import Bars
from ..imaging.references import list_references
from ..lab.models import shipped
from ..lab.studies import sheet
from .demo_options import PACK, Job, check, fill_in, open_picture, put_inputs, read_graph
from .tiny import FILL

PLAIN, INLAY, LOSS = "16", "17", "18"  # the nodes of the graph that save pictures


def picture(result: PromptResult, node: str) -> Image.Image:
    return Image.open(io.BytesIO(result[node].images[0])).convert("RGB")


def draw_sheet(job: Job, result: PromptResult, note: str) -> Image.Image:
    """References | background with the box | plain inpainting | with Inlay."""
    side = sheet.PANEL
    files = [file for file, _ in list_references(job.references)]
    panels = [
        ("Your subject", sheet.mosaic([open_picture(file) for file in files], side)),
        ("Your picture", sheet.with_box(job.background, job.box, side)),
        ("Plain inpainting", sheet.enlarge(picture(result, PLAIN), side)),
        ("With Inlay", sheet.enlarge(picture(result, INLAY), side)),
    ]
    return sheet.contact_sheet(f'"{job.prompt}"', panels, note)


def save(image: Image.Image, path: Path) -> Path:
    """Writes a PNG whole or not at all."""
    partial = path.with_suffix(".partial")
    image.save(partial, format="PNG")
    os.replace(partial, path)
    return path


def say(what: str, value: str) -> None:
    print(f"  {what:<12} {value}", flush=True)


def short(path: Path) -> str:
    """`path` as the user would type it here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if Path.cwd() in path.parents else path)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python dev.py demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE", help="an inpainting checkpoint (9 channels)")
    masks = "its mask is the transparency, or NAME_mask.png beside NAME"
    add("--references", type=Path, metavar="DIR", help=f"3 to 5 pictures of the subject; {masks}")
    add("--background", type=Path, metavar="FILE", help="the picture that it goes into")
    add("--box", metavar="X,Y,W,H", help="where it goes, in pixels of that picture")
    add("--class-name", metavar="NAME", help="what it is, in a word or two: dog, coffee mug")
    add("--prompt", metavar="TEXT", help='default: "a photo of sks NAME"')
    add("--steps", type=int, metavar="N", help="training steps")
    add("--seed", type=int, default=1, metavar="N", help="of both samplers (default 1)")
    add("--loras", type=Path, metavar="DIR", help="for the LoRA it trains (default: ComfyUI's models/loras)")
    add("--out", type=Path, default=PACK / "out" / "demo", metavar="DIR", help="for what it makes")
    add("--work", type=Path, default=PACK / ".inlay" / "demo", metavar="DIR", help="for ComfyUI's own files")
    add("--port", type=int, default=0, metavar="N", help="of the host (default: any free one)")
    return parser


def run(job: Job, server: Server) -> PromptResult:
    """Starts the host, sends the graph and follows it."""
    put_inputs(job, server.work / "input")
    start = time.monotonic()
    with server:
        client = Client(server.url)
        about = client.system()
        version, device = about["system"]["comfyui_version"], about["devices"][0]["name"]
        say("ComfyUI", f"{version} on {device}, up in {time.monotonic() - start:.0f} s")
        print()
        graph = fill_in(read_graph(job.checkpoint), job)
        return client.run(graph, Bars(graph))


def demo(options: argparse.Namespace) -> None:
    start = time.monotonic()
    print("\nInlay: your subject, in your picture\n")
    job = check(options)
    size, box = job.background.size, job.box
    say("subject", f"{len(list_references(job.references))} pictures of a {job.class_name}")
    say("picture", f"{size[0]} x {size[1]}, box {box.left},{box.top},{box.width},{box.height}")
    server = Server(options.work, port=options.port)
    models = {"checkpoints": job.checkpoint and job.checkpoint.parent, "loras": options.loras}
    server.models = {kind: folder for kind, folder in models.items() if folder}
    if not job.checkpoint:
        shipped.install(server.comfyui / "models")
    model = job.checkpoint.name if job.checkpoint else FILL
    say("model", model)
    if not job.checkpoint and (options.references or options.background):
        say("note", "the tiny model knows only its own small world; --checkpoint names a real one")
    result = run(job, server)

    seconds = time.monotonic() - start
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for node, name in ((PLAIN, "plain"), (INLAY, "with_inlay"), (LOSS, "loss")):
        save(picture(result, node), out / f"{name}.png")
    note = f"{Path(model).stem}, seed {job.seed}, {seconds:.0f} s in all"
    contact_sheet = save(draw_sheet(job, result, note), out / "contact_sheet.png")
    print(f"\nDone in {seconds:.0f} s.\n")
    say("look at", short(contact_sheet))
    say("alone", f"plain.png, with_inlay.png and loss.png in {short(out)}")
    say("in a browser", "python dev.py serve, then Workflows > tiny")
    say("your own", "python dev.py demo --help")


def stop(*_) -> None:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)  # shells start background jobs with SIGINT ignored
    options = arguments().parse_args()
    try:
        demo(options)
    except KeyboardInterrupt:
        print("\n\nStopped, and ComfyUI with it.", file=sys.stderr)
        return 130
    except (HostError, ValueError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        if isinstance(error, (PromptRefused, NodeFailed)):
            print(f"ComfyUI's log: {short(options.work / 'host.log')}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
