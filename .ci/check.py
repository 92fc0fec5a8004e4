#!/usr/bin/env python3
"""What must stay true of this repository and no compiler sees.

    .ci/check.py house               files, dependencies, lints
    .ci/check.py docker              docker/: syntax, and only metrics that exist
    .ci/check.py readme PROGRAM      README and all other documents against the program, the code, and each other
    .ci/check.py test-command        prints the command with which README runs the tests
"""

import html
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE_BYTES_MAX = 1 << 20
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
GLOBAL_OPTIONS = {"log-format", "verbose", "help", "version"}

# Documents that name other programs' options by themselves.
CARGO_TOO = {"proto-tests/fuzz/README.md"}

# Columns of docs/failures.md that hold what the program says.
SEEN = {"what you see", "sentence"}

# Words in these columns that the program does not say, or puts together.
OTHERS_SAY = {
    "disk full",
    "127.0.0.1:9464 is in use",
    "it is moved by method pg_dump: there is nothing to cut over",
}

faults = []


def fault(text):
    faults.append(text)


def tracked():
    """Files that are in the repository or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def house():
    machine = re.compile(r"(?<![\w.~$-])/" + r"work(?![\w-])")
    neighbour = "../" + "shared"
    for name in tracked():
        size = (ROOT / name).stat().st_size
        if size > FILE_BYTES_MAX:
            fault(f"{name}: {size} bytes, {FILE_BYTES_MAX} are allowed")
        try:
            text = read(name)
        except UnicodeDecodeError:
            fault(f"{name}: not UTF-8")
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if machine.search(line):
                fault(f"{name}:{number}: a path of one machine")
            if neighbour in line and not (name.startswith(("tests/", "proto-tests/")) and "skip" in text):
                fault(f"{name}:{number}: a path outside the repository")
            if re.match(r"(<{7}|={7}|>{7})( |$)", line):
                fault(f"{name}:{number}: a merge is not finished")
    for name in tracked():
        if not name.endswith("Cargo.lock"):
            continue
        for number, line in enumerate(read(name).splitlines(), 1):
            if line.startswith("source = ") and not line.startswith('source = "registry+'):
                fault(f"{name}:{number}: a dependency that is not from the registry: {line}")
    if not re.search(r'^unsafe_code = "forbid"$', read("Cargo.toml"), re.M):
        fault('Cargo.toml: [workspace.lints.rust] must have unsafe_code = "forbid"')
    for name in tracked():
        if name.endswith("Cargo.toml") and not re.search(r"^\[lints\]\nworkspace = true$", read(name), re.M):
            fault(f"{name}: must have [lints] workspace = true")
        if name.endswith(".rs") and re.search(r"allow\([^)]*unsafe_code", read(name)):
            fault(f"{name}: unsafe code is forbidden")
    tests_in_documents()
    long_tests()
    for name in (".ci/run", ".ci/deny"):
        if not os.access(ROOT / name, os.X_OK):
            fault(f"{name}: not executable")


def tests_in_documents():
    """What a column `test` of a document names exists."""
    known = set()
    for name in tracked():
        if name.endswith(".rs"):
            known |= set(re.findall(r"^ *(?:async )?fn (\w+)\(", read(name), re.M))
    for name in ("docs/security.md", "ARCHITECTURE.md"):
        named = [test for row in rows(read(name)) for test in re.findall(r"`([^`]+)`", row.get("test", ""))]
        if not named:
            fault(f"{name}: no test found")
        for test in named:
            if test.split("::")[-1] not in known:
                fault(f"{name}: there is no test {test}")


def long_tests():
    """Each test that is left out for its time stands in CONTRIBUTING.md, and the other way round."""
    ignored = set()
    for name in tracked():
        if name.startswith(("src/", "tests/")) and name.endswith(".rs"):
            functions = re.findall(r'#\[ignore = "long"\]\n(?: *#\[.*\]\n)* *(?:async )?fn (\w+)\(', read(name))
            path = pathlib.PurePath(name).with_suffix("")
            modules = [part for part in path.parts[1:] if part not in ("main", "mod")]
            ignored |= {"::".join([*modules, function]) for function in functions}
    cells = [row.get("long test", "") for row in rows(read("CONTRIBUTING.md"))]
    listed = {test for cell in cells for test in re.findall(r"`([\w:]+)`", cell)}
    for test in sorted(ignored - listed):
        fault(f"CONTRIBUTING.md: its table of long tests lacks {test}")
    for test in sorted(listed - ignored):
        fault(f"CONTRIBUTING.md: there is no long test {test}")


def metrics():
    """Every metric of the program, by name."""
    text = read("src/status/metrics.rs").split("#[cfg(test)]")[0]
    found = set(re.findall(r'"(walferry_[a-z0-9_]+)"', text))
    if not found:
        fault("src/status/metrics.rs: no metric found")
    return found


def docker():
    yaml = import_yaml()
    known = metrics()
    known |= {name + part for name in known for part in HISTOGRAM_PARTS}
    for name in tracked():
        if not name.startswith("docker/"):
            continue
        text = read(name)
        try:
            if name.endswith((".yml", ".yaml")):
                list(yaml.safe_load_all(text))
            elif name.endswith(".json"):
                json.loads(text)
        except (ValueError, yaml.YAMLError) as error:
            fault(f"{name}: {error}")
        for metric in sorted(set(re.findall(r"\bwalferry_[a-z0-9_]+", text)) - known):
            fault(f"{name}: {metric} is no metric of src/status/metrics.rs")
        for image in re.findall(r"^(?:FROM| *image:) (\S+)", text, re.M):
            if not re.search(r"@sha256:[0-9a-f]{64}$", image):
                fault(f"{name}: {image} is not pinned by its digest")
    for name, expression in expressions(yaml):
        plain = re.sub(r'"[^"]*"', '""', expression)
        if any(plain.count(a) != plain.count(b) for a, b in ("()", "[]", "{}")):
            fault(f"{name}: brackets do not match: {expression}")


def expressions(yaml):
    """All PromQL of rules and dashboards."""
    for name in tracked():
        if not name.startswith("docker/"):
            continue
        if name.endswith("rules.yml"):
            for group in yaml.safe_load(read(name))["groups"]:
                for rule in group["rules"]:
                    for key in ("summary", "description"):
                        if not rule.get("annotations", {}).get(key):
                            fault(f"{name}: {rule.get('alert')} has no {key}")
                    yield name, rule["expr"]
        elif name.endswith(".json"):
            for panel in json.loads(read(name)).get("panels", []):
                for target in panel.get("targets", []):
                    yield name, target["expr"]


def import_yaml():
    try:
        import yaml
    except ImportError:
        place = ROOT / "target/ci/python"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", place, "pyyaml==6.0.3"]
        subprocess.run(pip, check=True)
        sys.path.insert(0, str(place))
        import yaml
    return yaml


def readme(program):
    """All documents: a reader finds what the program has, and nothing that it has not."""
    help_texts = command_helps(program)
    commands(help_texts)
    sentences()
    monitoring()
    configuration()
    environment()
    picture()
    modules()
    for name in documents():
        text = read(name)
        links(name, text)
        what_is_typed(name, text, help_texts)
        places(name, text)
    names_in_code("ARCHITECTURE.md")


def documents():
    return [name for name in tracked() if name.endswith(".md")]


def rows(text):
    """The rows of all tables, each as a dictionary from the column's header to the cell."""
    header = None
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""]):
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if header is None and re.match(r"^\|[-:| ]+\|$", following):
            header = cells
        elif header is not None and not re.match(r"^\|[-:| ]+\|$", line):
            yield dict(zip(header, cells))


def prose_and_code(text):
    """A document without its code blocks, and their lines."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), [line for b in blocks for line in b.splitlines()]


def anchors(text):
    """What GitHub makes of the headings."""
    seen, found = {}, set()
    for heading in re.findall(r"^#+ (.+)$", prose_and_code(text)[0], re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        count = seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def links(name, text):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose_and_code(text)[0]):
        path, _, anchor = link.partition("#")
        to = (ROOT / name).parent / path if path else ROOT / name
        if not to.exists():
            fault(f"{name}: {link} does not exist")
        elif anchor and anchor not in anchors(to.read_text(encoding="utf-8")):
            fault(f"{name}: {link}: there is no such heading")


def what_is_typed(name, text, help_texts):
    """Every command line and option that a document shows exists."""
    options = {command: options_of(text) for command, text in help_texts.items()}
    every = set().union(*options.values())
    prose, code = prose_and_code(text)
    spans = re.findall(r"`([^`]+)`", prose)
    for typed in spans + code:
        for command, rest in re.findall(r"(?:^|(?<=[\s(]))walferry ([a-z]+)\b([^#|;&]*)", typed):
            if command not in options:
                fault(f"{name}: {typed!r}: there is no command {command}")
                continue
            for option in re.findall(r"(?<!\S)--([a-z-]+)", rest):
                if option not in options[command]:
                    fault(f"{name}: {typed!r}: walferry {command} has no --{option}")
    for span in spans:
        option = re.match(r"--([a-z-]+)", span)
        if option and option.group(1) not in every and name not in CARGO_TOO:
            fault(f"{name}: there is no option --{option.group(1)}")


def places(name, text):
    """Every file and folder that a document names exists, but for those of PostgreSQL."""
    for place in re.findall(r"`((?:src(?!/backend/)|tests|proto-tests|fixtures|benches|docker|docs|\.ci)/[\w./-]*)`", text):
        if not (ROOT / place).exists():
            fault(f"{name}: {place} does not exist")


def names_in_code(name):
    """What a document calls by its name is called so in the code."""
    code = "".join(read(path) for path in tracked() if path.endswith(".rs"))
    for called in set(re.findall(r"`([A-Za-z_][\w:]*)`", read(name))):
        if not re.search(rf"\b{called.split('::')[-1]}\b", code):
            fault(f"{name}: nothing is called {called}")


def modules():
    """The modules of ARCHITECTURE.md, and their order, are those that the test of the order knows."""
    test = "proto-tests/tests/module_order.rs"
    order = re.search(r"const ORDER: &\[&str\] = &\[(.*?)\];", read(test), re.S)
    order = re.findall(r'"(\w+)"', order.group(1)) if order else []
    listed = [re.findall(r"`src/(\w+)/`", row.get("module", "")) for row in rows(read("ARCHITECTURE.md"))]
    listed = [name for names in listed for name in names]
    if not order or listed != order:
        fault(f"ARCHITECTURE.md has the modules {listed}, {test} has {order}")


def monitoring():
    name = "docs/monitoring.md"
    text = read(name)
    in_table = set(re.findall(r"^\| `(walferry_[a-z0-9_]+)", text, re.M))
    for metric in sorted(metrics() - in_table):
        fault(f"{name}: metric {metric} is not in the table")
    for document in documents():
        known = metrics() | {metric + part for metric in metrics() for part in HISTOGRAM_PARTS}
        named = set(re.findall(r"`(walferry_[a-z0-9_]+)(?:\{\w+\})?`", read(document)))
        for metric in sorted(metric for metric in named - known if not metric.startswith("walferry_default_")):
            fault(f"{document}: {metric} is no metric of src/status/metrics.rs")
    paths = re.findall(r'\.route\(\s*"([^"]+)"', read("src/status/http.rs"))
    if not paths:
        fault("src/status/http.rs: no path found")
    for path in paths:
        if f"`{path}`" not in text:
            fault(f"{name}: the HTTP path {path} is missing")


def configuration():
    """Every key of the configuration file is in docs/commands.md, and the other way round."""
    keys = set()
    for name in tracked():
        if name.startswith("src/config/"):
            text = read(name)
            keys |= set(re.findall(r'^ *\("([a-z._-]+)", (?:\|raw\||"\w+"\))', text, re.M))
            for sides in re.findall(r"const SIDES: [^=]+= \[([^\]]+)\]", text):
                keys |= set(re.findall(r'"([^"]+)"', sides))
    if not keys:
        fault("src/config/: no key found")
    listed = {key for row in rows(read("docs/commands.md")) for key in re.findall(r"`([^`]+)`", row.get("key", ""))}
    for key in sorted(keys ^ listed):
        fault(f"docs/commands.md and src/config/ disagree about the key {key}")


def environment():
    """What tests and benchmarks read of the environment is in CONTRIBUTING.md, and the other way round."""
    variable = r"WALFERRY_(?:TEST|BENCH)_[A-Z_]+"
    read_here = set()
    for name in tracked():
        if name.endswith(".rs") and not name.startswith("src/"):
            read_here |= set(re.findall(rf'"({variable})"', read(name)))
    listed = {v for row in rows(read("CONTRIBUTING.md")) for v in re.findall(variable, row.get("variable", ""))}
    for name in sorted(read_here ^ listed):
        fault(f"CONTRIBUTING.md and the tests disagree about the variable {name}")


def picture():
    """What the picture of the demo shows is what the demo prints."""
    sources = sources_under("src/demo/")
    texts = re.findall(r"<text [^>]*>(.*?)</text>", read("docs/demo.svg"))
    if not texts:
        fault("docs/demo.svg: no text found")
    for text in texts[1:]:
        for part in re.split(r"\d[\d.,]*(?: [kM]?B| s)?|  +", html.unescape(re.sub(r"<[^>]+>", "", text))):
            part = part.strip(" ,;")
            if len(part) > 8 and part not in sources:
                fault(f"docs/demo.svg: {part!r} is nowhere in src/demo/")


def sources_under(folder):
    """All Rust below a folder, its texts in one piece."""
    sources = "".join(read(name) for name in tracked() if name.startswith(folder) and name.endswith(".rs"))
    return re.sub(r"\\\n\s*", "", sources)


def sentences():
    """The sentences of the tables of failures against the code: whoever searches for what he sees has to find it."""
    name = "docs/failures.md"
    text, sources = read(name), sources_under("src/")
    cells = [cell for row in rows(text) for header, cell in row.items() if header in SEEN]
    if not cells:
        fault(f"{name}: no sentence found")
    for sentence in re.findall(r"`([^`]+)`", "\n".join(cells)):
        for part in re.split(r"\(?…\)?", sentence):
            part = part.strip()
            if len(part) > 3 and part not in sources and sentence not in OTHERS_SAY:
                fault(f"{name}: {part!r} is nowhere in src/")
    judged = re.findall(r'(?:transient|definite)\(\s*"([^"]+)"', read("src/wire/sqlstate.rs").split("#[cfg(test)]")[0])
    if not judged:
        fault("src/wire/sqlstate.rs: no sentence found")
    for sentence in judged:
        if f"`{sentence}`" not in text:
            fault(f"{name}: {sentence!r} of src/wire/sqlstate.rs is missing")


def command_helps(program):
    """Each command's help, that of all of them under no name."""
    overall = help_of(program)
    listed = re.search(r"^Commands:\n(.*?)\n\n", overall, re.M | re.S).group(1)
    names = {name for name in re.findall(r"^  ([a-z]+) ", listed, re.M)} - {"help"}
    return {"": overall, **{name: help_of(program, name) for name in sorted(names)}}


def commands(help_texts):
    """The sections `walferry COMMAND` of docs/commands.md against the program's own help."""
    document = "docs/commands.md"
    text = read(document)
    sections = dict(re.findall(r"^## `walferry ([a-z]+)`\n(.*?)(?=^## )", text, re.M | re.S))
    names = set(help_texts) - {""}
    for name in sorted(names ^ set(sections)):
        fault(f"{document} and --help disagree about the command {name}")
    for name in sorted(GLOBAL_OPTIONS):
        if f"`--{name}" not in text:
            fault(f"{document}: --{name} is missing")
    for name in sorted(names & set(sections)):
        options = options_of(help_texts[name]) - GLOBAL_OPTIONS
        documented = set(re.findall(r"^\|[^|]*`--([a-z-]+)[^|]*\|", sections[name], re.M))
        for option in sorted(options - documented):
            fault(f"{document}: walferry {name} has --{option}, its table does not")
        for option in sorted(documented - options):
            fault(f"{document}: walferry {name} has no --{option}")
    for code, meaning in re.findall(r"^  (\d)  (.+)$", help_texts[""], re.M):
        if not re.search(rf"^\| {code} \| {re.escape(meaning)}", text, re.M):
            fault(f"{document}: exit code {code} ({meaning}) is missing")


def help_of(program, *command):
    run = subprocess.run([ROOT / program, *command, "--help"], check=True, capture_output=True, text=True)
    return run.stdout


def options_of(text):
    return set(re.findall(r"^ +(?:-\w, )?--([a-z-]+)", text, re.M))


def test_command():
    for block in re.findall(r"^```sh\n(.*?)^```", read("README.md"), re.M | re.S):
        for line in block.splitlines():
            if line.startswith("cargo test "):
                return line.split("  #")[0].strip()
    sys.exit("README.md: no block has a line that starts with cargo test")


def main():
    arguments = sys.argv[1:]
    if arguments == ["house"]:
        house()
    elif arguments == ["docker"]:
        docker()
    elif len(arguments) == 2 and arguments[0] == "readme":
        readme(arguments[1])
    elif arguments == ["test-command"]:
        print(test_command())
    else:
        sys.exit(__doc__)
    for text in faults:
        print(text, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
