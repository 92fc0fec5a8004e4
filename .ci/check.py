#!/usr/bin/env python3
"""What must stay true of this repository and no compiler sees.

    .ci/check.py house               files, dependencies, lints
    .ci/check.py docker              docker/: syntax, and only metrics that exist
    .ci/check.py readme PROGRAM      README against the program's help, its metrics, its HTTP paths
    .ci/check.py test-command        prints the command with which README runs the tests
"""

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

# Words in the tables of faults that are not ours, or that are put together.
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
    security()
    long_tests()
    for name in (".ci/run", ".ci/deny"):
        if not os.access(ROOT / name, os.X_OK):
            fault(f"{name}: not executable")


def security():
    """Each attack that docs/security.md says is defended has a test of that name."""
    tests = set()
    for name in tracked():
        if name.endswith(".rs"):
            tests |= set(re.findall(r"^ *(?:async )?fn (\w+)\(", read(name), re.M))
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| ([^|]+) \|$", read("docs/security.md"), re.M)
    named = [test for row in rows for test in re.findall(r"`([^`]+)`", row)]
    if not named:
        fault("docs/security.md: no test found")
    for test in named:
        if test not in tests:
            fault(f"docs/security.md: there is no test {test}")


def long_tests():
    """Each test that is left out for its time stands in CONTRIBUTING.md, and the other way round."""
    ignored = set()
    for name in tracked():
        if name.startswith(("src/", "tests/")) and name.endswith(".rs"):
            functions = re.findall(r'#\[ignore = "long"\]\n(?: *#\[.*\]\n)* *(?:async )?fn (\w+)\(', read(name))
            path = pathlib.PurePath(name).with_suffix("")
            modules = [part for part in path.parts[1:] if part not in ("main", "mod")]
            ignored |= {"::".join([*modules, function]) for function in functions}
    listed = set(re.findall(r"^\| `([\w:]+)` \| [^|]+ \|$", read("CONTRIBUTING.md"), re.M))
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
    text = read("README.md")
    commands(text, program)
    sentences(text)
    in_table = set(re.findall(r"^\| `(walferry_[a-z0-9_]+)", text, re.M))
    for name in sorted(metrics() - in_table):
        fault(f"README.md: metric {name} is not in the table")
    for name in sorted(in_table - metrics()):
        fault(f"README.md: {name} is no metric of src/status/metrics.rs")
    for path in re.findall(r'\.route\(\s*"([^"]+)"', read("src/status/http.rs")):
        if f"`{path}`" not in text:
            fault(f"README.md: the HTTP path {path} is missing")
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        if not (ROOT / link).exists():
            fault(f"README.md: {link} does not exist")


def sentences(text):
    """The sentences of the tables of faults against the code: whoever searches for what he sees has to find it."""
    sources = "".join(read(name) for name in tracked() if name.startswith("src/") and name.endswith(".rs"))
    sources = re.sub(r"\\\n\s*", "", sources)
    section = text.split("\n## When something fails\n")[1].split("\n## ")[0]
    rows = [("README.md", row) for row in re.findall(r"^\| (.+?) \| ", section, re.M)]
    faults_text = read("docs/faults.md")
    rows += [("docs/faults.md", row) for row in re.findall(r"^\| [^|]+ \| ([^|]+) \| ", faults_text, re.M)]
    for name, row in rows:
        for sentence in re.findall(r"`([^`]+)`", row):
            for part in re.split(r"\(?…\)?", sentence):
                part = part.strip()
                if len(part) > 3 and part not in sources and sentence not in OTHERS_SAY:
                    fault(f"{name}: {part!r} is nowhere in src/")
    judged = re.findall(r'(?:transient|definite)\(\s*"([^"]+)"', read("src/wire/sqlstate.rs").split("#[cfg(test)]")[0])
    if not judged:
        fault("src/wire/sqlstate.rs: no sentence found")
    for sentence in judged:
        if f"`{sentence}`" not in faults_text:
            fault(f"docs/faults.md: {sentence!r} of src/wire/sqlstate.rs is missing")


def commands(text, program):
    """README's `### walferry COMMAND` sections against the program's own help."""
    sections = dict(re.findall(r"^### `walferry ([a-z]+)`\n(.*?)(?=^##)", text, re.M | re.S))
    overall = help_of(program)
    listed = re.search(r"^Commands:\n(.*?)\n\n", overall, re.M | re.S).group(1)
    names = {name for name in re.findall(r"^  ([a-z]+) ", listed, re.M)} - {"help"}
    for name in sorted(names ^ set(sections)):
        fault(f"README.md and --help disagree about the command {name}")
    for name in sorted(GLOBAL_OPTIONS):
        if f"`--{name}" not in text:
            fault(f"README.md: --{name} is missing")
    for name in sorted(names & set(sections)):
        options = options_of(help_of(program, name)) - GLOBAL_OPTIONS
        documented = set(re.findall(r"^\|[^|]*`--([a-z-]+)[^|]*\|", sections[name], re.M))
        for option in sorted(options - documented):
            fault(f"README.md: walferry {name} has --{option}, its table does not")
        for option in sorted(documented - options):
            fault(f"README.md: walferry {name} has no --{option}")
    for code, meaning in re.findall(r"^  (\d)  (.+)$", overall, re.M):
        if not re.search(rf"^\| {code} \| {re.escape(meaning)}", text, re.M):
            fault(f"README.md: exit code {code} ({meaning}) is missing")


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
