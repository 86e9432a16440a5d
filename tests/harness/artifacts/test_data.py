import gzip
import hashlib
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor

from bnlab.harness.artifacts import data, glyphs
from bnlab.harness.artifacts.data import DataConfig, augment, check, load_dataset, predicted_images
from bnlab.harness.artifacts.published import PUBLISHED
from bnlab.harness.artifacts.vision import torchvision
from bnlab.harness.errors import UserError

TRAIN, TEST = 40, 12


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    data._load.cache_clear()
    yield
    data._load.cache_clear()


def pixels(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def labels(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint8) % 10


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_mnist(root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "mnist") -> None:
    """The two idx files of each part, as http://yann.lecun.com/exdb/mnist describes them."""
    for prefix, n, seed in (("train", TRAIN, 1), ("t10k", TEST, 2)):
        files = [root / file for file in PUBLISHED[name].files if f"/{prefix}" in file]
        files[0].parent.mkdir(parents=True, exist_ok=True)
        header = np.array([0x803, n, 28, 28], dtype=">i4").tobytes()
        files[0].write_bytes(header + pixels(n, 28, 28, seed=seed).tobytes())
        files[1].write_bytes(np.array([0x801, n], dtype=">i4").tobytes() + labels(n).tobytes())


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pickled batches like CIFAR's, and a reader that knows their MD5 sums."""
    folder = root / Path(PUBLISHED[name].files[0]).parent
    folder.mkdir(parents=True)
    real = getattr(torchvision().datasets, PUBLISHED[name].reader)
    key = "labels" if name == "cifar10" else "fine_labels"

    def write(files: list[list[str]], n: int) -> list[list[str]]:
        for number, (file, _) in enumerate(files):
            batch = {"data": pixels(n, 3072, seed=number), key: labels(n).tolist()}
            (folder / file).write_bytes(pickle.dumps(batch))
        return [[file, digest(folder / file)] for file, _ in files]

    train = write(real.train_list, TRAIN // len(real.train_list))
    test = write(real.test_list, TEST)
    meta = folder / real.meta["filename"]
    meta.write_bytes(pickle.dumps({real.meta["key"]: [str(i) for i in range(10)]}))
    sums = {"train_list": train, "test_list": test, "meta": {**real.meta, "md5": digest(meta)}}
    monkeypatch.setattr(torchvision().datasets, real.__name__, type(real.__name__, (real,), sums))


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The .mat files of SVHN, where the label of the digit 0 is 10."""
    real = torchvision().datasets.SVHN
    sums = {}
    for part, n, seed in (("train", TRAIN, 1), ("test", TEST, 2)):
        file = root / f"{part}_32x32.mat"
        savemat(file, {"X": pixels(32, 32, 3, n, seed=seed), "y": (labels(n) + 1)[:, None]})
        sums[part] = ["http://localhost", file.name, digest(file)]
    monkeypatch.setattr(torchvision().datasets, "SVHN", type("SVHN", (real,), {"split_list": sums}))


WRITERS = {
    "mnist": write_mnist,
    "fashion_mnist": write_mnist,
    "cifar10": write_cifar,
    "cifar100": write_cifar,
    "svhn": write_svhn,
}


@pytest.fixture(params=list(WRITERS))
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A small copy of each of torchvision's data sets, with files of the real kind in the real places."""
    name = request.param
    WRITERS[name](tmp_path, monkeypatch, name)
    monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], train=TRAIN, test=TEST))
    return DataConfig(name, str(tmp_path))


def raw(dataset: data.Dataset, images: Tensor) -> Tensor:
    """The stored pixels again."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (dataset.mean, dataset.std))
    return (images * std + mean).round().to(torch.uint8)


def rows(dataset: data.Dataset) -> list[set[bytes]]:
    return [
        {image.numpy().tobytes() for image in raw(dataset, split.images)}
        for split in (dataset.train, dataset.val, dataset.test)
    ]


def assert_predicted_images_are_known(config: DataConfig, dataset: data.Dataset) -> None:
    for split in ("test", "val", "train"):
        assert predicted_images(config, split) == len(dataset.images_of(split).labels)


def assert_standardized(dataset: data.Dataset) -> None:
    """(x - m)/s rounds three times in float32, each by less than 2⁻²⁴ (|x| + |m|)/s."""
    images = dataset.train.images.double()
    assert dataset.train.images.dtype == torch.float32
    for channel in range(images.shape[1]):
        largest = (255 + dataset.mean[channel]) / dataset.std[channel]
        tolerance = 3 * 2**-24 * largest
        assert abs(images[:, channel].mean()) < tolerance
        assert abs(images[:, channel].std(correction=0) - 1) < tolerance


def test_torchvision_data_are_read_split_and_standardized(stored: DataConfig) -> None:
    dataset = load_dataset(stored)
    source = PUBLISHED[stored.name]
    channels = 1 if "mnist" in stored.name else 3
    assert check(stored) == len(dataset.train.images) == len(dataset.train.labels) == 36
    assert dataset.val.images.shape == (4, channels, source.size, source.size)
    assert dataset.test.images.shape == (TEST, channels, source.size, source.size)
    assert dataset.test.labels.dtype == torch.int64
    assert dataset.classes == source.classes
    assert_predicted_images_are_known(stored, dataset)
    assert dataset.test.images.is_contiguous(memory_format=torch.channels_last)
    assert_standardized(dataset)
    # The test split is in the order of the file: its pixels and labels must come back.
    images, labels_ = raw(dataset, dataset.test.images), dataset.test.labels
    if channels == 1:
        expected = pixels(TEST, 28, 28, seed=2)[:, None]
    elif stored.name == "svhn":
        expected = pixels(32, 32, 3, TEST, seed=2).transpose(3, 2, 0, 1)
    else:
        expected = pixels(TEST, 3, 32, 32, seed=0)
    np.testing.assert_array_equal(images.numpy(), expected)
    np.testing.assert_array_equal(labels_, (labels(TEST) + (stored.name == "svhn")) % 10)


def test_a_missing_file_is_named_with_its_place_and_how_to_get_it(stored: DataConfig) -> None:
    file = Path(stored.root) / PUBLISHED[stored.name].files[-1]
    file.unlink()
    for call in (check, load_dataset):
        with pytest.raises(UserError) as error:
            call(stored)
        assert f"{stored.name}: {file} is missing; set data.download=true" in str(error.value)
        assert PUBLISHED[stored.name].archives[0] in str(error.value)
        assert PUBLISHED[stored.name].url in str(error.value)
    assert check(replace(stored, download=True)) == 36


def test_a_corrupt_file_is_named_and_not_opened(stored: DataConfig) -> None:
    file = Path(stored.root) / PUBLISHED[stored.name].files[0]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError) as error:
        load_dataset(stored)
    assert str(error.value).startswith(f"{stored.name}: corrupt: {file}")
    assert "delete and set data.download=true" in str(error.value)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a file of unknown content was unpickled",)


def test_a_forged_pickle_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"corrupt: [^,]*data_batch_3;"):
        load_dataset(DataConfig("cifar10", str(tmp_path)))


def test_a_data_set_cut_short_is_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="40 train images and 40 labels instead of 60,000"):
        load_dataset(DataConfig("mnist", str(tmp_path)))


def test_archives_put_beside_are_unpacked_without_a_network(
    stored: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = PUBLISHED[stored.name], Path(stored.root)
    reader = getattr(torchvision().datasets, source.reader)
    expected = load_dataset(stored).test.images
    data._load.cache_clear()
    folder = root / source.folder
    if "mnist" in stored.name:
        resources = []
        for file in map(Path, source.files):
            archive = folder / f"{file.name}.gz"
            archive.write_bytes(gzip.compress((root / file).read_bytes()))
            (root / file).unlink()
            resources.append((archive.name, digest(archive)))
        monkeypatch.setattr(reader, "resources", resources)
    elif stored.name != "svhn":  # its archives are the files themselves
        archive = folder / source.archives[0]
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(root / reader.base_folder, reader.base_folder)
        shutil.rmtree(root / reader.base_folder)
        monkeypatch.setattr(reader, "tgz_md5", digest(archive))
    assert torch.equal(load_dataset(replace(stored, download=True)).test.images, expected)


def test_a_failing_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Port 9 of this machine: refused at once.
    monkeypatch.setattr(torchvision().datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=r"cifar10: download failed .*first put cifar-10-python.tar.gz from"):
        load_dataset(DataConfig("cifar10", str(tmp_path), download=True))


def test_digits_splits_are_disjoint_fixed_and_standardized() -> None:
    torch.manual_seed(1)
    first = load_dataset(DataConfig())
    data._load.cache_clear()
    torch.manual_seed(2)
    again = load_dataset(DataConfig())
    sizes = [len(split.labels) for split in (first.train, first.val, first.test)]
    assert sizes == [1295, 143, 359] and check(DataConfig()) == 1295
    train, val, test = rows(first)
    assert not (train & val or train & test or val & test)
    for a, b in ((first.train, again.train), (first.val, again.val), (first.test, again.test)):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert_standardized(first)


def test_fewer_images_leave_the_test_split_alone() -> None:
    few = load_dataset(DataConfig(images=100))
    assert (len(few.train.labels), len(few.val.labels)) == (90, 10)
    assert_predicted_images_are_known(DataConfig(images=100), few)
    assert rows(few)[2] == rows(load_dataset(DataConfig()))[2]


def test_a_process_reads_the_data_once_whatever_the_augmentation() -> None:
    assert load_dataset(DataConfig(shift=1)) is load_dataset(DataConfig())


@pytest.mark.parametrize("settings", [(36, "medium", "all"), (10, "weak", "dejavu"), (62, "strong", "stix_cm")])
def test_a_glyph_depends_on_seed_and_index_alone(settings: tuple[int, str, str]) -> None:
    few, few_labels = glyphs.glyphs(30, *settings, seed=3)
    torch.manual_seed(99)
    many, many_labels = glyphs.glyphs(1100, *settings, seed=3)
    other, _ = glyphs.glyphs(30, *settings, seed=4)
    assert torch.equal(few, many[:30]) and torch.equal(few_labels, many_labels[:30])
    assert not torch.equal(few, other)
    assert many.shape == (1100, 1, 32, 32) and many.dtype == torch.uint8
    assert set(many_labels.tolist()) == set(range(settings[0]))


def test_font_sets_are_disjoint_and_show_every_character() -> None:
    assert not set(glyphs.FONTS["dejavu"]) & set(glyphs.FONTS["stix_cm"])
    ink = glyphs._atlas("all", glyphs.CLASSES[62]).sum(dim=(2, 3))
    assert ink.shape == (21, 62) and (ink > 20).all()


def test_glyph_splits_are_disjoint_and_standardized(tmp_path: Path) -> None:
    config = DataConfig("glyphs", str(tmp_path), images=200)
    dataset = load_dataset(config)
    assert check(config) == len(dataset.train.labels) == 180
    assert (len(dataset.val.labels), len(dataset.test.labels), dataset.classes) == (20, 50, 36)
    assert_predicted_images_are_known(config, dataset)
    train, val, test = rows(dataset)
    assert not (train & val or train & test or val & test)
    assert_standardized(dataset)


def test_other_test_fonts_shift_the_test_split_only(tmp_path: Path) -> None:
    config = DataConfig("glyphs", str(tmp_path), images=100, fonts="dejavu", test_fonts="dejavu")
    plain, shifted = load_dataset(config), load_dataset(replace(config, test_fonts="stix_cm"))
    assert torch.equal(plain.train.images, shifted.train.images)
    assert not torch.equal(plain.test.images, shifted.test.images)


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_corrupt_glyph_file_is_set_aside_and_redone(tmp_path: Path, damage: str) -> None:
    settings = (50, 10, "weak", "all", 0)
    expected = glyphs.stored_glyphs(tmp_path, *settings)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    broken = {
        "cut": content[:-10],
        "foreign": b"not a tensor file",
    }
    file.write_bytes(broken[damage])
    again = glyphs.stored_glyphs(tmp_path, *settings)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".damaged", ".safetensors"]


def test_several_may_ask_for_the_same_glyphs_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(glyphs.stored_glyphs, tmp_path, 50, 10, "weak", "all", 0) for _ in range(4)]
    assert all(torch.equal(made[0].result()[0], other.result()[0]) for other in made)
    assert len(list(tmp_path.iterdir())) == 1


def test_glyphs_say_when_their_folder_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "glyphs").write_text("in the way")
    with pytest.raises(UserError, match=r"glyphs: cannot use .*choose another data.root"):
        load_dataset(DataConfig("glyphs", str(tmp_path), images=10))


def write_folder(root: Path) -> DataConfig:
    for part, n in (("train", 10), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / "image_folder" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(pixels(20, 24, 3, seed=i) // 2 + 100 * label).save(folder / f"{i}.png")
    return DataConfig("image_folder", str(root), image_size=16)


def test_image_folder(tmp_path: Path) -> None:
    config = write_folder(tmp_path)
    dataset = load_dataset(config)
    assert check(config) == len(dataset.train.labels) == 18
    assert dataset.test.images.shape == (6, 3, 16, 16) and dataset.classes == 2
    assert_predicted_images_are_known(config, dataset)
    labels = dataset.test.labels
    assert sorted(labels) == [0, 0, 0, 1, 1, 1] != labels.tolist()  # test batches have both
    brightness = dataset.test.images.mean(dim=(1, 2, 3))
    assert (brightness[labels == 0] < 0).all() and (brightness[labels == 1] > 0).all()
    assert_standardized(dataset)


def test_image_folder_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image_folder: .*put images into .*train/<class>/"):
        check(DataConfig("image_folder", str(tmp_path)))
    with pytest.raises(UserError, match=r"image_folder: .*Not a directory.*put images into"):
        check(DataConfig("image_folder", __file__))
    config = write_folder(tmp_path)
    file = tmp_path / "image_folder" / "test" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"image_folder: .*dog/1.png is corrupt .*; replace or delete it"):
        load_dataset(config)
    file.parent.rename(file.parents[1] / "cow")
    with pytest.raises(UserError, match="only one of them has cow, dog"):
        load_dataset(config)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_eight_bits_are_refused(dtype: type, tmp_path: Path) -> None:
    """Their values above 255 were white."""
    config = write_folder(tmp_path)
    file = tmp_path / "image_folder" / "test" / "dog" / "1.tif"
    Image.fromarray(np.full((20, 24), 30_000, dtype)).save(file)
    with pytest.raises(UserError, match=r"image_folder: .*dog/1.tif has values of more than 8 bits \([IF]\S*\)"):
        load_dataset(config)


def test_a_constant_channel_cannot_be_standardized(tmp_path: Path) -> None:
    config = write_folder(tmp_path)
    for file in (tmp_path / "image_folder").rglob("*.png"):
        grey = np.asarray(Image.open(file)).copy()
        grey[..., 1] = 7
        Image.fromarray(grey).save(file)
    with pytest.raises(UserError, match="image_folder: channel 1 is the same in all training pixels"):
        load_dataset(config)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (DataConfig("cifar"), "data.name=cifar: must be one of digits, glyphs, mnist"),
        (DataConfig("glyphs", classes=26), "data.classes=26: must be one of 10, 36, 62"),
        (DataConfig("glyphs", difficulty="hard"), "data.difficulty=hard: must be one of weak, medium"),
        (DataConfig("glyphs", fonts="arial"), "data.fonts=arial: must be one of dejavu, stix_cm, all"),
        (DataConfig("glyphs", test_fonts="x"), "data.test_fonts=x: must be one of"),
        (DataConfig("glyphs", images=9), "data.images=9: must be 10 to 10,000,000"),
        (DataConfig(images=1439), "data.images=1439: must be 10 to 1,438"),
        (DataConfig(flip=True), "data.flip=true: a mirror image in digits"),
        (DataConfig(shift=5), "data.shift=5: must be 0 to 4"),
        (DataConfig(shift=-1), "data.shift=-1: must be 0 to 4"),
        (DataConfig("image_folder", image_size=4), "data.image_size=4: must be 8 to 1,024"),
    ],
)
def test_bad_settings_are_named(config: DataConfig, found: str) -> None:
    with pytest.raises(UserError, match="^" + found):
        check(config)


def numbered(n: int) -> Tensor:
    return torch.arange(1.0, n * 12 + 1).view(n, 2, 2, 3)


def test_augmentation_that_is_off_costs_and_draws_nothing() -> None:
    images, generator = numbered(2), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment(images, generator, shift=0, flip=False) is images
    assert torch.equal(generator.get_state(), before)


def test_a_flip_mirrors_whole_images_half_the_time() -> None:
    images = numbered(2000)
    out = augment(images, torch.Generator().manual_seed(0), shift=0, flip=True)
    mirrored = (out == images.flip(3)).all(dim=(1, 2, 3))
    assert ((out == images).all(dim=(1, 2, 3)) ^ mirrored).all()
    # Five standard deviations of a fair coin.
    assert abs(mirrored.double().mean() - 0.5) < 5 * 0.5 / 2000**0.5


def test_a_shift_moves_each_image_by_its_own_offset_and_fills_with_zero() -> None:
    images = numbered(500)
    out = augment(images, torch.Generator().manual_seed(0), shift=1, flip=False)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    matches = torch.stack(
        [(out == padded[:, :, y : y + 2, x : x + 3]).all(dim=(1, 2, 3)) for y in range(3) for x in range(3)]
    )
    assert (matches.sum(0) == 1).all() and (matches.sum(1) > 30).all()
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_augmentation_follows_its_generator() -> None:
    first, again, other = (
        augment(numbered(9), torch.Generator().manual_seed(seed), shift=1, flip=True) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
