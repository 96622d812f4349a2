"""Videos to segment: frames, the masks that are given, and which frames are written.

Given masks are births: of every mask only the ids that no earlier one held.  What becomes of a known object
is for propagation to say.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core import palette
from core.errors import UserError
from core.palette import VOID, ids_in, read_ids
from core.suggest import suggestion
from datasets.readers import UnreadableFrame
from datasets.readers.frames import read_frame as decode

SUFFIXES = (".jpg", ".jpeg", ".png")
#: a word of a list: in quotes, or without a space
WORD = re.compile(r"""(?:"([^"]*)"|'([^']*)')(?=\s|$)|(\S+)""")


@dataclass(frozen=True)
class VosSequence:
    """One video.  images, masks (None = none given), written: one entry a frame.

    annotations: the folder with a mask for every frame, where there is one.
    """

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    written: tuple[bool, ...]
    annotations: Path | None = None

    @property
    def length(self):
        return len(self.images)

    @property
    def frame_names(self):
        """The name of every frame, and of the mask written for it, without suffix."""
        return tuple(path.stem for path in self.images)

    def frames(self):
        """Decode frame after frame -> uint8 RGB [H,W,3]; UserError names a damaged file or one of another size."""
        size = None
        for path in self.images:
            frame = read_frame(path)
            size = size or frame.shape
            if frame.shape != size:
                raise UserError(
                    f"{path}: {frame.shape[1]}x{frame.shape[0]} pixels where the frames before have "
                    f"{size[1]}x{size[0]}; all frames of a video must have one size"
                )
            yield frame

    def given(self) -> dict[int, np.ndarray]:
        """The masks at which objects are born: {frame index: ids uint8 [H,W]}, void taken out.

        Where the masks hold 0 and 255 alone, 255 is an object, not void: id 1.  UserError where there is no object.
        """
        return self._births()[0]

    def doubts(self) -> Iterator[tuple[Path, str]]:
        """What looks wrong about the given masks, or has to be said: a mask's path and a sentence, each."""
        given, binary = self._births()
        for t, ids in given.items():
            if binary:
                yield self.masks[t], "holds 0 and 255 alone, so 255 is one object here, not void; its id is 1"
            for text in palette.doubts(self.masks[t], ids):
                yield self.masks[t], text

    def _births(self):
        """What given() returns, and whether its object is marked with 255."""
        known, given, void = {0, VOID}, {}, {}
        for t, path in enumerate(self.masks):
            if path is None:
                continue
            ids = read_ids(path)
            there = ids_in(ids)
            born = sorted(there - known)
            if born:
                kept = np.zeros(256, np.uint8)
                kept[born] = born
                given[t] = kept[ids]
                known.update(born)
            elif VOID in there and not void:
                void[t] = np.uint8(ids == VOID)
        if not (given or void):
            masks = ", ".join([str(path) for path in self.masks if path][:3]) or "any mask: there is none"
            raise UserError(
                f"{self.name}: nothing to follow, no object is marked in {masks}; an object is an id from 1 to 254"
            )
        return given or void, not given


class SequenceReader:
    """The frames of sequences as training reads them: a datasets.readers.VideoReader."""

    def __init__(self, sequences):
        self.sequences = sequences

    def __len__(self):
        return len(self.sequences)

    def name(self, video):
        return self.sequences[video].name

    def length(self, video):
        return self.sequences[video].length

    def times(self, video):
        return None

    def read(self, video, frame_ids):
        return [decode(self.sequences[video].images[i]) for i in frame_ids]


def read_frame(path):
    """Decode a picture -> uint8 RGB [H,W,3]; UserError names a file that is missing or damaged."""
    try:
        return decode(path)
    except UnreadableFrame as error:
        raise UserError(f"{error}; restore this frame") from error


def davis(root, split="val", names=None):
    """DAVIS 2017: root/{JPEGImages,Annotations}/480p/<sequence>, root/ImageSets/2017/<split>.txt.

    The annotation of the first frame is given, every frame is written.  names: these sequences only, here
    and below.
    """
    return [_davis(Path(root), name, births=False) for name in _chosen(_split(Path(root), split), names)]


def sample(root, split="val", names=None):
    """The made sample set: as DAVIS, but an object that enters later is given where it is first annotated."""
    return [_davis(Path(root), name, births=True) for name in _chosen(_split(Path(root), split), names)]


def _split(root, split):
    path = root / "ImageSets" / "2017" / f"{split}.txt"
    if not path.is_file():
        raise UserError(
            f"{path}: missing; {root} must be in DAVIS layout: ImageSets/2017/{split}.txt, "
            "JPEGImages/480p/<sequence>/, Annotations/480p/<sequence>/"
        )
    try:
        names = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected one name a line") from error
    if not names:
        raise UserError(f"{path}: names no sequence; expected one name a line")
    return names


def _davis(root, name, births):
    images = pictures(root / "JPEGImages" / "480p" / name)
    folder = root / "Annotations" / "480p" / name
    masks = tuple(folder / f"{image.stem}.png" for image in images)
    if not masks[0].is_file():
        raise UserError(f"{masks[0]}: missing; the annotation of the first frame says what to follow")
    there = tuple(mask if mask.is_file() else None for mask in masks)
    given = there if births else (masks[0],) + (None,) * (len(images) - 1)
    annotations = folder if all(there) else None
    return VosSequence(name, images, given, (True,) * len(images), annotations)


def ytvos(root, names=None):
    """YouTube-VOS: root/valid/{JPEGImages,Annotations}/<video>; root may also be that valid/ itself.

    Objects are given where annotations stand.  Where valid_all_frames/JPEGImages stands beside valid/, its
    frames are propagated through; those of valid/ are written.
    """
    root = Path(root)
    valid = root / "valid"
    if not valid.is_dir() and (root / "JPEGImages").is_dir():
        valid = root
    for folder in (valid / "JPEGImages", valid / "Annotations"):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: missing; {root} must be in YouTube-VOS layout: "
                "valid/JPEGImages/<video>/, valid/Annotations/<video>/"
            )
    if (valid / "JPEGImages" / "480p").is_dir():
        raise UserError(f"{root}: is in DAVIS layout, not in that of YouTube-VOS; choose --dataset davis")
    videos = sorted(folder.name for folder in (valid / "JPEGImages").iterdir() if folder.is_dir())
    if not videos:
        raise UserError(f"{valid / 'JPEGImages'}: holds no video; expected one folder a video")
    every_frame = valid.parent / "valid_all_frames" / "JPEGImages"
    every_frame = every_frame if every_frame.is_dir() else None
    return [_ytvos(valid, name, every_frame) for name in _chosen(videos, names)]


def _ytvos(valid, name, every_frame):
    written = images = pictures(valid / "JPEGImages" / name)
    if every_frame is not None:
        images = pictures(every_frame / name)
    places = {image.stem: t for t, image in enumerate(images)}
    masks = [None] * len(images)
    for mask in pictures(valid / "Annotations" / name):
        masks[_place(mask, places, images)] = mask
    flags = [False] * len(images)
    for image in written:
        flags[_place(image, places, images)] = True
    return VosSequence(name, images, tuple(masks), tuple(flags))


def _place(path, places, images):
    if path.stem not in places:
        raise UserError(f"{path}: no frame of that name in {images[0].parent}")
    return places[path.stem]


def listed(file, root, names=None) -> list[VosSequence]:
    """A list with `flag image mask` a line, paths relative to root, a leading / allowed.

    flag 0: propagate through the frame, but do not write it.  The folder of the images is the video.  A mask that
    is left out, `-` or a file that does not exist is not given.  Paths with spaces stand in quotes, or tabs
    separate the columns.
    """
    file, root = Path(file), Path(root)
    videos: dict[Path, list] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot read the list ({error}); name a text file") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        flag, image, mask = _columns(line, f"{file}:{number}")
        image, mask = root / image.lstrip("/"), None if mask == "-" else root / mask.lstrip("/")
        if not image.is_file():
            raise UserError(f"{file}:{number}: {image} does not exist (paths are relative to {root})")
        folder = Path(os.path.abspath(image.parent))  # "." has no name
        videos.setdefault(folder, []).append((image, mask, flag == "1"))
    if not videos:
        raise UserError(f"{file}: names no frame; expected `flag image mask` a line")
    _once(file, [folder.name for folder in videos], "two videos whose folders are both named")
    folders = {folder.name: folder for folder in videos}
    return [_listed(file, folders[name], videos[folders[name]]) for name in _chosen(list(folders), names)]


def _columns(line, where):
    """flag, image and mask (`-` = none) of a line; UserError names the place."""
    flag, *rest = line.strip().split(None, 1)
    rest = "".join(rest)
    if "\t" in line:
        words = [word.strip() for word in rest.split("\t") if word.strip()]
    else:
        words = ["".join(groups) for groups in WORD.findall(rest)]
    if flag not in ("0", "1") or len(words) not in (1, 2):
        raise UserError(
            f"{where}: {line!r}: expected `flag image mask`, flag 0 or 1; the mask may be left out; names with spaces "
            "stand in quotes, or tabs separate the columns"
        )
    return flag, words[0], words[1] if len(words) == 2 else "-"


def _listed(file, folder, rows):
    images, masks, written = zip(*rows)
    _once(file, [image.stem for image in images], f"in {folder} two frames named")
    there = tuple(mask if mask and mask.is_file() else None for mask in masks)
    if not any(there):
        named = next((f"{mask} is no file" for mask in masks if mask), "no line names one")
        raise UserError(f"{file}: {folder.name} has no mask to start from: {named}")
    if not any(written):
        raise UserError(f"{file}: {folder.name} has no frame to write: every line has flag 0; flag 1 writes a frame")
    return VosSequence(folder.name, images, there, written, _annotated(images, there, written))


def _annotated(images, masks, written):
    """The folder of the masks where its PNGs are the annotations of these very frames, all written; else None."""
    if not (all(masks) and all(written)):
        return None
    folder = masks[0].parent
    wanted = {folder / f"{image.stem}.png" for image in images}
    return folder if set(masks) == wanted == set(folder.glob("*.png")) else None


def _once(file, names, what):
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{file}: {what} {twice[0]!r}; one would overwrite the other")


def pictures(folder):
    """The JPEG and PNG files of a folder by name; UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise UserError(f"{folder}: holds no JPEG or PNG file")
    _once(folder, [path.stem for path in found], "two pictures are named")
    return tuple(found)


def _chosen(known, names):
    """names, or all that are known where names is None; UserError for one that is not known."""
    for name in names or ():
        if name not in known:
            there = f"{', '.join(list(known)[:20])}{', ...' if len(known) > 20 else ''}"
            raise UserError(f"sequence {name!r} does not exist{suggestion(name, known)}; there are: {there}")
    return list(dict.fromkeys(known if names is None else names))
