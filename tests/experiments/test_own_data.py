"""Own data: bytes and floats stay what they are, random transforms are for training alone, anything else is refused."""

from __future__ import annotations

import importlib
import itertools
import random
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bnlab.harness import load, load_images, load_model
from bnlab.harness.artifacts.data import OwnData
from bnlab.harness.artifacts.data.own_data import forget_own
from bnlab.harness.artifacts.dataset import load_dataset
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training import Batches, Seeds
from bnlab.harness.errors import UserError
from bnlab.harness.lab.compose import quote
from tests.experiments.commands import Call, Write
from tests.helpers import plan_jobs, torchvision

TRAIN, TEST = 40, 12
CASES = itertools.count()  # what has been read is kept by the arguments of its function
Part = tuple[np.ndarray, np.ndarray]
Change = Callable[[np.ndarray], Any]
Give = Callable[..., list[str]]


def make_part(count: int) -> Part:
    """Random bytes [N, 3, 8, 8] of three classes; the first pixel is the image's number."""
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    images[:, :, 0, 0] = np.arange(count)[:, None]
    return images, np.arange(count) % 3


def change_images(change: Change) -> tuple[Part, Part]:
    """The training and the test part with other images."""
    (images, labels), (test, test_labels) = make_part(TRAIN), make_part(TEST)
    return (change(images), labels), (change(test), test_labels)


class Items:
    """A data set of an array's images as PIL's, transformed each time that one is read."""

    def __init__(self, part: Part, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.labels = part
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index].transpose(1, 2, 0))
        return self.transform(image), int(self.labels[index])


def keep(image: Image.Image) -> Image.Image:
    return image


def brighten(image: Image.Image) -> Image.Image:
    """Add what is drawn by torch, numpy and random, on all pixels but the first."""
    pixels = np.array(image)
    more = int(torch.randint(3, ())) + np.random.randint(3) + random.randrange(3)
    pixels.reshape(-1, 3)[1:] //= 2
    pixels.reshape(-1, 3)[1:] += more
    return Image.fromarray(pixels)


def make_three_parts() -> tuple[Items, Items, Items]:
    return Items(make_part(TRAIN), keep), Items(make_part(TEST), keep), Items(make_part(TRAIN), brighten)


def make_two_parts() -> list[Items]:
    return [*make_three_parts()][:2]


THREE_PARTS = OwnData(name=f"{__name__}.make_three_parts")


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Give:
    """Lets the function `given.make_data` give these parts: the words that choose it, of several ways one by one."""

    def choose(*makes: Callable[[], Any]) -> list[str]:
        ways = {next(CASES): make for make in makes}
        given = SimpleNamespace(make_data=lambda case: ways.get(case, makes[-1])())  # a test may make up a case
        monkeypatch.setitem(sys.modules, "given", given)
        return ["data=given.make_data", f"data.case={','.join(map(str, ways))}"]

    return choose


def to_tensors(change: Change) -> Change:
    return lambda images: torch.from_numpy(change(images.astype(np.float64)))


FLOATS: dict[str, Change] = {
    "bytes": lambda images: images,
    "ToTensor": lambda images: images.astype(np.float32) / 255,
    "Normalize": lambda images: (images / 255 - 0.45) / 0.22,
    "tensors": to_tensors(lambda images: images - 300),
}


def transform_with_torchvision() -> list[Items]:
    """Make a data set that is read item by item."""
    v1 = torchvision().transforms
    normalize = v1.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    return transform_items(v1.Compose([v1.ToTensor(), normalize]))


def test_floats_are_taken_as_they_are(give: Give, call: Call, tmp_path: Path) -> None:
    """Standardized they are the bytes that they have been made of, so that they train the same network."""
    kinds = [partial(change_images, change) for change in FLOATS.values()]
    words = ["-m", *give(*kinds, transform_with_torchvision), "steps=3", "batch_size=12", "measurements=[log]"]

    assert call("sweep", *words, "model.width=4", "hydra/launcher=basic", f"results={tmp_path}").code == 0

    runs = load("adhoc", tmp_path)["runs"]
    assert len(runs) == len(FLOATS) + 1
    assert runs["final_loss"].to_numpy() == pytest.approx(runs["final_loss"][0], rel=1e-3)


def spoil(value: float) -> Change:
    def changed(images: np.ndarray) -> np.ndarray:
        floats = images.astype(np.float64)
        floats[5, 1, 2, 3] = value
        return floats

    return changed


def fill_channel(images: np.ndarray) -> np.ndarray:
    images[:, 1] = 255
    return images


def label_as(labels: Any) -> tuple[Any, Part]:
    return (make_part(TRAIN)[0], labels), make_part(TEST)


def label_both(change: Change) -> list[Part]:
    return [(images, change(labels)) for images, labels in make_pairs()]


def transform_items(transform: Callable[[Image.Image], Any]) -> list[Items]:
    return [Items(make_part(TRAIN), transform), Items(make_part(TEST), transform)]


def resize_some(image: Image.Image) -> Image.Image:
    return image.resize((6, 6)) if np.array(image)[0, 0, 0] % 2 else image


def fail_at_seven(image: Image.Image) -> Image.Image:
    if np.array(image)[0, 0, 0] == 7:
        raise OSError("image file is truncated")
    return image


def draw_own(generator: np.random.Generator) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image if generator.random() < 0.5 else Image.fromarray(np.array(image) // 2)


def make_pairs() -> list[Part]:
    return [make_part(TRAIN), make_part(TEST)]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    # images
    "int16": (lambda: change_images(lambda i: i.astype(np.int16)), "the training part has int16 .* images; .*uint8"),
    "channels last": (
        lambda: change_images(lambda i: i.transpose(0, 2, 3, 1)),
        r"the training part has images of shape \[40, 8, 8, 3\]; they have to be \[N, C, H, W\]",
    ),
    "NaN": (
        lambda: change_images(spoil(np.nan)),
        "the training part has NaN or infinite pixels in 1 of its items, as item 5",
    ),
    "sizes": (lambda: transform_items(resize_some), r"stack expects each tensor to be equal size, .*\[3, 8, 8\]"),
    "an item that fails": (lambda: transform_items(fail_at_seven), r"test_own_data\.py:\d+: OSError: image file is "),
    "parts of two types": (
        lambda: [make_part(TRAIN), change_images(FLOATS["ToTensor"])[1]],
        r"the test part has images float32 \[3, 8, 8\], the training part uint8 \[3, 8, 8\]",
    ),
    "constant channel": (
        lambda: change_images(fill_channel),
        "channel 1 of 3 is 255 in each pixel of all 36 training images",
    ),
    # labels
    "regression": (
        lambda: label_both(lambda labels: labels / 2),
        r"has labels of shape \[40\], float32; they have to be",
    ),
    "parts of two kinds": (
        lambda: label_as(make_part(TRAIN)[1] / 2),
        "labels of the test part have another shape or type",
    ),
    "a class without images": (lambda: label_as(make_part(TRAIN)[1] + 1), "the classes 1, 2, 3; number them 0, 1, 2"),
    # random transforms
    "random": (lambda: transform_items(brighten), r"the training part gives other images .*\(train, test, augmented\)"),
    "another order": (
        lambda: [*make_pairs(), Items((make_part(TRAIN)[0], make_part(TRAIN)[1][::-1]), brighten)],
        "the augmented part has other labels than the training part",
    ),
    "a generator of its own": (
        lambda: [*make_pairs(), transform_items(draw_own(np.random.default_rng(0)))[0]],
        "the augmented part draws other images from the same seed; .* global generators of torch, numpy or random",
    ),
    # parts
    "corrupted floats": (
        lambda: change_images(FLOATS["Normalize"]),
        "has float images, of which black and white are not known; give bytes",
    ),
    "one part": (
        lambda: make_pairs()[:1],
        "found 1 of 2 or 3 parts; it has to give the training and the test part",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused(case: str, give: Give, call: Call, tmp_path: Path) -> None:
    make, message = REFUSED[case]

    code, _, err = call("sweep", *give(make), "batch_size=4", "shifts=[none,noise:1]", f"results={tmp_path}/r")

    assert code == 2
    assert "data=given.make_data" in err
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def draw_parts() -> list[Part]:
    few = np.random.rand(20, 1, 8, 8) + torch.rand(()).item() + random.random()
    return [(few, np.arange(20) % 2), (few[:5], np.arange(5) % 2)]


def draw_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()


def test_what_a_function_draws_is_the_same_each_time(give: Give) -> None:
    """Whatever was drawn before, which goes on as if the data had not been read."""
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = draw_states()
        load_dataset.cache_clear()
        forget_own()
        digests.add(load_dataset(OwnData(name=f"{__name__}.draw_parts")).train.digest)
        assert draw_states() == before

    assert len(digests) == 1


def test_augmented_images_are_those_of_the_training_split() -> None:
    """Each with its label, drawn again at each step, the same for a seed; what is measured is as without them."""
    dataset = load_dataset(THREE_PARTS)
    batches = Batches(dataset.train, 8, Seeds.of(0), augmented=dataset.augmented)
    plain = replace(batches, augmented=None)

    assert batches.augments
    assert not plain.augments

    before = draw_states()
    steps = [*itertools.islice(batches.from_step(0), 10)]
    assert draw_states() == before

    for (images, labels), (expected, their_labels) in zip(steps, plain.from_step(0), strict=False):
        assert torch.equal(labels, their_labels)
        assert not torch.equal(images, expected)
        assert torch.equal(images[:, :, 0, 0], expected[:, :, 0, 0])  # which no transform changes
        assert images.is_contiguous(memory_format=torch.channels_last)
    for step in (3, 7):
        again, _ = next(iter(batches.from_step(step)))
        assert torch.equal(again, steps[step][0])

    seeds = replace(Seeds.of(0), augmentation=1)
    other_seed, _ = next(iter(replace(batches, seeds=seeds).from_step(0)))
    assert not torch.equal(other_seed, steps[0][0])

    train = dataset.train_augmented.images
    assert torch.equal(train[:, :, 0, 0], dataset.train.images[:, :, 0, 0])
    assert dataset.train_augmented.digest != dataset.train.digest
    assert not torch.equal(train, dataset.train.images)


FOLDER = """
from pathlib import Path

import numpy as np


def load(folder, size=8):
    # first wording
    files = np.load(Path(folder) / "images.npz")
    images, labels = files["images"][:, :, :size, :size], files["labels"]
    return (images[12:], labels[12:]), (images[:12], labels[:12])
"""
OF_FOLDERS = (
    "data=of_folders.load",
    "steps=30",
    "batch_size=12",
    "model.width=4",
    "evaluate_at=final",
    "hydra/launcher=basic",
)


def write_folder(folder: Path, change: Change = lambda images: images) -> None:
    """Images whose classes are three brightnesses, changed."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(72) % 3
    noise = np.random.default_rng(0).integers(0, 40, (72, 3, 8, 8))
    images = (noise + 70 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "images.npz", images=change(images), labels=labels)


@pytest.fixture
def sweep_folders(write: Write, call: Call, tmp_path: Path) -> Callable[..., str]:
    """Sweeps over folders with images, as a new process would; what the command says."""

    def sweep(*words: str, text: str = FOLDER) -> str:
        write(text, "of_folders")
        done = call("sweep", "-m", *OF_FOLDERS, *words, f"results={tmp_path}/r")
        assert done.code == 0, done.err
        return done.out

    return sweep


def name_folder(folder: Path) -> str:
    """The word of a command that names the folder."""
    return f"data.folder={quote(str(folder))}"


def test_a_moved_folder_trains_nothing_again(sweep_folders: Callable[..., str], tmp_path: Path) -> None:
    """Nor do other words in the function's file; the network is loaded from where its images are now."""
    write_folder(tmp_path / "photos")
    sweep_folders(name_folder(tmp_path / "photos"))
    (network,) = load("adhoc", tmp_path / "r")["runs"]["run"]
    before, _ = load_images("adhoc", network, results=tmp_path / "r")
    (tmp_path / "photos").rename(tmp_path / "moved")

    said = sweep_folders(name_folder(tmp_path / "moved"), text=FOLDER.replace("first", "second"))

    assert said.startswith("1 job on 1 network, all trained already")
    tables = load("adhoc", tmp_path / "r")
    assert list(tables["runs"]["data.folder"]) == [f"{tmp_path}/moved"]
    forget_own()
    images, labels = load_images("adhoc", network, results=tmp_path / "r")
    assert torch.equal(images, before)
    with torch.no_grad():
        hits = load_model("adhoc", network, results=tmp_path / "r")(images).argmax(1) == labels
    measured = tables["evaluations"].set_index("estimator")["accuracy"]["ema"]
    assert hits.double().mean().item() == pytest.approx(measured, abs=1.5 / len(labels)), "one may be on the border"


def brighten_one(index: int) -> Change:
    def changed(images: np.ndarray) -> np.ndarray:
        images[index, 0, 0, 0] += 1
        return images

    return changed


@pytest.mark.parametrize("index", [0, 71], ids=["of the test part", "of the training part"])
def test_a_changed_image_is_another_network(
    index: int, sweep_folders: Callable[..., str], call: Call, tmp_path: Path
) -> None:
    """The first one is not loaded with images that it never saw, and is listed without reading any."""
    write_folder(tmp_path / "photos")
    sweep_folders(name_folder(tmp_path / "photos"))
    first = load("adhoc", tmp_path / "r")["runs"]["run"][0]
    write_folder(tmp_path / "photos", brighten_one(index))

    assert sweep_folders(name_folder(tmp_path / "photos")).startswith("1 job on 1 network, none trained yet")

    load_dataset.cache_clear()  # as in another process
    with pytest.raises(UserError, match=r"data=of_folders.load: gives other images or labels than"):
        load_model("adhoc", first, results=tmp_path / "r")
    (tmp_path / "photos" / "images.npz").unlink()
    forget_own()
    listed = call("runs list", f"results={tmp_path}/r")
    assert (listed.code, listed.err) == (0, "")
    assert "data.content" in listed.out


def test_a_module_that_is_gone_is_named(sweep_folders: Callable[..., str], call: Call, tmp_path: Path) -> None:
    """Its network's files are sound, and nobody says that they are not."""
    write_folder(tmp_path / "photos")
    sweep_folders(name_folder(tmp_path / "photos"))
    (network,) = load("adhoc", tmp_path / "r")["runs"]["run"]
    (tmp_path / "of_folders.py").unlink()
    del sys.modules["of_folders"]
    importlib.invalidate_caches()
    message = f"{network}: cannot be built without what it was made of; data=of_folders.load: cannot be imported, "

    with pytest.raises(UserError) as found:
        load_model("adhoc", network, results=tmp_path / "r")
    exported = call("runs export", network, str(tmp_path / "one.safetensors"), f"results={tmp_path}/r")

    assert str(found.value).startswith(message)
    assert (exported.code, exported.err) == (2, f"error: {found.value}\n")


def test_a_set_of_arguments_is_read_once_for_a_thousand_jobs(give: Give, tmp_path: Path) -> None:
    """Three of them, and images of two fit into memory."""
    read = []

    def make() -> list[Part]:
        read.append(1)
        return make_pairs()

    first, case = give(make)
    number = case.partition("=")[2]
    words = [first, f"data.case=a{number},b{number},c{number}", "batch_size=4", "seed=range(100)"]

    jobs = plan_jobs([*words, f"results={tmp_path}"], multirun=True).jobs

    assert len(jobs) == 300
    assert len({Run(job.config).id.partition("/")[0] for job in jobs}) == 1
    assert len(read) == 3


def test_transforms_are_told_by_what_they_draw_and_by_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [THREE_PARTS.find_content(), OwnData(name=f"{__name__}.make_two_parts").find_content()]
    monkeypatch.setattr("bnlab.harness.artifacts.data.images.own_images.digest_code", lambda module: "other")
    forget_own()
    contents.append(THREE_PARTS.find_content())
    monkeypatch.setattr(f"{__name__}.brighten", keep)
    forget_own()
    contents.append(THREE_PARTS.find_content())
    forget_own()

    assert len({*contents}) == 4


def test_a_function_that_gives_others_each_time(give: Give, call: Call, tmp_path: Path) -> None:
    """Is refused where it is called again, before a network is trained under a name of other images."""
    seeds = itertools.count()
    words = give(lambda: change_images(lambda images: images + np.uint8(next(seeds))))
    (job,) = plan_jobs([*words, "batch_size=4"]).jobs
    forget_own()

    with pytest.raises(UserError, match="a function has to give the same images whenever it is called"):
        load_dataset(job.config.data)
