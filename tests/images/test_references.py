"""Which reference an input is compared with."""

from __future__ import annotations

import os
import uuid
import zipfile
from pathlib import Path

import fsspec
import pytest

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.images.references import References, find_references


def touch(folder: Path, *names: str) -> None:
    """Files of these names; what is in them is nobody's business here."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


class TestFolder:
    def test_by_the_name_of_the_input_wherever_that_lies(self, tmp_path: Path) -> None:
        touch(tmp_path / "golden", "a.png", "b.jpg")
        references = find_references("golden", base_dir=str(tmp_path))
        assert references.path_for("inputs/line 4/a.png") == "golden/a.png"
        assert references.path_for("a.png") == "golden/a.png"
        assert references.path_for("/data/b.jpg") == "golden/b.jpg"
        assert references.path_for("s3://bucket/x/b.jpg") == "golden/b.jpg"

    @pytest.mark.parametrize("spelled", ["golden", "golden/", "./golden", "golden/.", "other/../golden", "*/"])
    def test_however_it_is_spelled(self, tmp_path: Path, spelled: str) -> None:
        touch(tmp_path / "golden", "a.png", "sub/b.png")
        (tmp_path / "other").mkdir()
        references = find_references(spelled, base_dir=str(tmp_path))
        for name in ("a.png", "sub/b.png"):
            found = references.path_for(f"in/{os.path.basename(name)}")
            assert (tmp_path / found).resolve() == (tmp_path / "golden" / name).resolve()

    def test_the_current_one(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png", "sub/b.png")
        references = find_references(".", base_dir=str(tmp_path))
        assert [os.path.normpath(references.path_for(name)) for name in ("x/a.png", "b.png")] == ["a.png", "sub/b.png"]

    def test_nested_folders(self, tmp_path: Path) -> None:
        touch(tmp_path / "golden", "a.png", "one/b.png", "one/two/c.PNG", "notes.txt")
        references = find_references(str(tmp_path / "golden"), base_dir="/")
        assert references.path_for("b.png") == str(tmp_path / "golden/one/b.png")
        assert references.path_for("in/c.PNG") == str(tmp_path / "golden/one/two/c.PNG")
        assert references.path_for("in/a.png") == str(tmp_path / "golden/a.png")

    def test_what_is_not_there_would_lie_directly_in_it(self, tmp_path: Path) -> None:
        touch(tmp_path / "golden", "a.png", "one/b.png")
        references = find_references("golden", base_dir=str(tmp_path))
        assert references.path_for("in/z.png") == "golden/z.png"

    def test_names_are_taken_as_they_are(self, tmp_path: Path) -> None:
        names = ("with space.png", "ümlaut.png", "per%20cent.png", "a#b.png", "sub/[0].png")
        touch(tmp_path / "golden", *names)
        references = find_references("golden", base_dir=str(tmp_path))
        for name in names:
            assert references.path_for(f"in/{os.path.basename(name)}") == f"golden/{name}"

    def test_memory_does_not_grow_with_a_flat_folder(self, tmp_path: Path) -> None:
        touch(tmp_path / "golden", *(f"{index}.png" for index in range(100)), "sub/one.png")
        assert find_references("golden", base_dir=str(tmp_path)).nested == {"one.png": "golden/sub/one.png"}


class TestOneForAll:
    @pytest.mark.parametrize("spelled", ["golden.png", "./golden.png", "sub/../golden.png"])
    def test_it_is_everyones(self, tmp_path: Path, spelled: str) -> None:
        touch(tmp_path, "golden.png", "sub/other.png")
        references = find_references(spelled, base_dir=str(tmp_path))
        for name in ("a.png", "in/b.jpg", "golden.png"):
            assert references.path_for(name) == spelled

    def test_a_folder_of_one_image_is_no_image_for_all(self, tmp_path: Path) -> None:
        touch(tmp_path / "golden", "a.png")
        assert find_references("golden", base_dir=str(tmp_path)).path_for("b.png") == "golden/b.png"


class TestUrl:
    @pytest.fixture
    def memory(self) -> str:
        """An empty folder in memory."""
        return f"memory://{uuid.uuid4().hex}"

    def put(self, *urls: str) -> None:
        for url in urls:
            with fsspec.open(url, "wb") as file:
                file.write(url.encode())

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_folder(self, memory: str, slash: str) -> None:
        self.put(f"{memory}/a.png", f"{memory}/sub/b.png")
        references = find_references(memory + slash, base_dir="/")
        for name, place in (("a.png", "a.png"), ("b.png", "sub/b.png")):
            with fsspec.open(references.path_for(f"in/{name}")) as file:
                assert file.read() == f"{memory}/{place}".encode()

    def test_a_local_folder(self, tmp_path: Path) -> None:
        touch(tmp_path / "golden", "a.png", "sub/b.png")
        url = (tmp_path / "golden").as_uri()
        references = find_references(url, base_dir="/")
        assert [references.path_for(f"in/{name}") for name in ("a.png", "b.png", "z.png")] == [
            f"{url}/a.png",
            f"{url}/sub/b.png",
            f"{url}/z.png",
        ]

    def test_one_image_for_all(self, memory: str) -> None:
        self.put(f"{memory}/golden.png")
        references = find_references(f"{memory}/golden.png", base_dir="/")
        assert references.path_for("in/a.png") == f"{memory}/golden.png"

    def test_inputs_with_a_query_have_the_name_before_it(self) -> None:
        assert References("golden").path_for("https://line4/cam/a.png?versionId=3") == "golden/a.png"

    def test_an_archive(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "golden.zip", "w") as archive:
            for name in ("a.png", "sub/b.png"):
                archive.writestr(name, b"x")
        archive_url = f"zip://::{(tmp_path / 'golden.zip').as_uri()}"
        references = find_references(archive_url, base_dir="/")
        for name in ("a.png", "b.png"):
            with fsspec.open(references.path_for(f"in/{name}")) as file:
                assert file.read() == b"x"

    def test_inputs_in_an_archive(self) -> None:
        assert References("golden").path_for("zip://in/a.png::file:///data/images.zip") == "golden/a.png"


class TestRefused:
    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("gone", "no such file"),
            ("empty", "no image"),
            ("notes.txt", "not that of an image"),
            ("", "empty"),
            ("nowhere://golden", "nowhere"),
            ("memory://no-such-folder-of-references", "no such"),
        ],
    )
    def test_nothing_to_compare_with(self, tmp_path: Path, path: str, reason: str) -> None:
        touch(tmp_path, "notes.txt")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ConfigError, match=reason) as caught:
            find_references(path, base_dir=str(tmp_path))
        assert repr(path) in str(caught.value)

    @pytest.mark.parametrize(
        "names", [("one/a.png", "two/a.png"), ("a.png", "two/a.png"), ("z/a.png", "a.png", "b.png")]
    )
    @pytest.mark.parametrize("as_url", [False, True])
    def test_a_name_twice(self, tmp_path: Path, names: tuple[str, ...], as_url: bool) -> None:
        touch(tmp_path / "golden", *names)
        path = (tmp_path / "golden").as_uri() if as_url else "golden"
        with pytest.raises(ConfigError, match="two references of the same name") as caught:
            find_references(path, base_dir=str(tmp_path))
        for name in names[:2]:
            assert f"golden/{name}'" in str(caught.value)

    def test_names_differ_by_case(self, tmp_path: Path) -> None:
        touch(tmp_path / "golden", "one/a.png", "two/A.png")
        references = find_references("golden", base_dir=str(tmp_path))
        assert references.path_for("A.png") == "golden/two/A.png"
