"""Build the parser of a command and print the imported packages."""

import argparse
import importlib
import sys

module = importlib.import_module("inlay." + sys.argv[1])
parser = argparse.ArgumentParser()
module.add_arguments(parser)
assert "--help" in parser.format_help()
print(*sorted({name.partition(".")[0] for name in sys.modules}))
