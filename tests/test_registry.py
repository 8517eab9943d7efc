"""What the Comfy registry takes from the project, and what it ships to users."""

import re
import subprocess

import comfy_host
import pytest
from PIL import Image

PACK = comfy_host.PACK
PROJECT = (PACK / "pyproject.toml").read_text("utf-8")


def setting(name):
    return re.search(rf'^"?{name}"? = "([^"]+)"', PROJECT, re.M)[1]


def files(*arguments):
    done = subprocess.run(["git", "ls-files", *arguments], cwd=PACK, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def shipped():
    if not (PACK / ".git").exists():
        pytest.skip("no git repository, so nothing says what belongs to the project")
    return set(files()) - set(files("--ignored", "--cached", "--exclude-from=.comfyignore"))


@pytest.mark.parametrize(("name", "width", "height"), [("Icon", 400, 400), ("Banner", 1260, 540)])
def test_pictures_of_the_registry(name, width, height):
    """An icon is at most 400 x 400 and square, a banner 21:9; an address that leads nowhere shows a broken picture."""
    repository = setting("Repository").replace("github.com", "raw.githubusercontent.com")
    path = setting(name).removeprefix(f"{repository}/main/")
    with Image.open(PACK / path) as picture:
        assert picture.size == (width, height)


def test_the_version_is_in_one_place():
    """The registry refuses a version that is not of three numbers; the changelog begins with it."""
    version = setting("version")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert re.search(r"^## (\S+)", (PACK / "CHANGELOG.md").read_text("utf-8"), re.M)[1] == version
    code = [path for folder in ("nodes", "easycache_core", "web") for path in (PACK / folder).rglob("*.[pj][ys]")]
    assert not [path.name for path in [*code, PACK / "__init__.py"] if version in path.read_text("utf-8")]


def test_what_a_user_downloads(shipped):
    """Tests, benchmarks and training are of no use to a user; what the pack loads must not be left out."""
    folders = {path.split("/")[0] for path in shipped}
    assert not folders & {"tests", "tools", ".github", ".ci"}
    assert {path for path in shipped if path.startswith("benchmarks/")} <= {
        path for path in shipped if path.endswith(".md")
    }
    needed = ("__init__.py", "similarity.py", "LICENSE", "README.md", "pyproject.toml", "requirements.txt")
    assert shipped.issuperset(needed)
    for folder in ("easycache_core", "nodes", "web", "locales", "workflows", "subgraphs"):
        assert set(files(folder)) <= shipped
    assert any(path.startswith("demo/") and path.endswith(".safetensors") for path in shipped)
    assert not {path for path in shipped if path.startswith("demo/clips")} | shipped & {"demo/train.py"}
    assert not {path for path in files() if path.endswith((".whl", ".zip", ".log"))}, "no part of the project"
    assert sum((PACK / path).stat().st_size for path in shipped) < 30e6


def test_the_pack_imports_with_what_is_shipped(shipped):
    """A module that the nodes import must not be among what is left out."""
    needed = [path for path in shipped if path.endswith(".py")]
    imported = set()
    for path in needed:
        for dots, module in re.findall(r"^\s*from (\.+)([\w.]*) import", (PACK / path).read_text("utf-8"), re.M):
            parts = path.split("/")[: -len(dots)]
            imported.add("/".join([*parts, *module.split(".")]).strip("/"))
    assert "easycache_core/controller" in imported
    for module in imported - {""}:
        assert {f"{module}.py", f"{module}/__init__.py"} & shipped, module


@pytest.mark.parametrize("page", files("*.md") if (PACK / ".git").exists() else ["README.md"])
def test_links_lead_somewhere(page):
    """A page that was moved leaves dead links and broken pictures behind."""
    text = re.sub(r"```.*?```", "", (PACK / page).read_text("utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert ((PACK / page).parent / target.split("#")[0]).exists(), target


def test_the_readme_is_short():
    """More than this nobody reads before the first picture."""
    assert len((PACK / "README.md").read_text("utf-8").splitlines()) <= 130
