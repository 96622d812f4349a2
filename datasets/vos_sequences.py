"""Videos to segment: frames, the masks that are given, and which frames are written.

An object is born at the first given mask that holds its id.  Later masks do not change it: propagation follows it.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from core import palette
from core.errors import UserError
from core.evaluation.folders import masks_in
from core.palette import VOID, ids_in, read_ids
from core.suggest import suggestion
from datasets.listing import LONGEST, list_folder
from datasets.readers import UnreadableFrame, VideoReader
from datasets.readers.frames import SUFFIXES
from datasets.readers.frames import read_frame as decode

#: A word of a list: in quotes, or without a space.
WORD = re.compile(r"""(?:"([^"]*)"|'([^']*)')(?=\s|$)|(\S+)""")


@dataclass(frozen=True)
class VosSequence:
    """One video of T frames.

    images [T]: files of the frames.  masks [T]: files of the given masks, None = none.  written [T]: whether the mask
    of a frame is written.  annotations: a folder with a mask of every frame, None = no such folder.  remark: a sentence
    that readers of results on this data set must know.
    """

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    written: tuple[bool, ...]
    annotations: Path | None = None
    remark: str | None = None

    @property
    def length(self) -> int:
        return len(self.images)

    @property
    def frame_names(self) -> tuple[str, ...]:
        """The name of every frame, and of the mask written for it, without suffix."""
        return tuple(path.stem for path in self.images)

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the frames, uint8 RGB [H,W,3].  Raises UserError for a file that is damaged or of another size."""
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

    def frame(self, t: int) -> np.ndarray:
        """Frame t.  Raises UserError for a file that is damaged."""
        return read_frame(self.images[t])

    def given(self) -> dict[int, np.ndarray]:
        """The masks at which objects are born: {frame index: ids uint8 [H,W]}, with the newborn objects only.

        Where the masks hold only 0 and 255, then 255 is not void but an object, which gets id 1.  Raises UserError
        where the masks hold no object.
        """
        return self._births()[0]

    def unscored(self) -> str:
        """Why J&F of it cannot be measured, in words; "" where it can.  Raises UserError for a damaged file."""
        if self.length < 3:
            return "fewer than 3 frames"
        names = {f"{name}.png" for name in self.frame_names}
        if self.annotations is None or names != {path.name for path in masks_in(self.annotations)}:
            return "not every frame is written and annotated, or its folder holds annotations of other frames"
        height, width = self.frame(0).shape[:2]
        for name in self.frame_names:
            there = read_ids(self.annotations / f"{name}.png").shape
            if there != (height, width):
                return f"annotation {name}.png has {there[1]}x{there[0]} pixels, the frames {width}x{height}"
        return ""

    def doubts(self) -> Iterator[tuple[Path, str]]:
        """Yield (path, remark) for every given mask that looks wrong or is read in a special way."""
        given, binary = self._births()
        for t, ids in given.items():
            if binary:
                yield self.masks[t], "holds 0 and 255 alone, so 255 is one object here, not void; its id is 1"
            for text in palette.doubts(self.masks[t], ids):
                yield self.masks[t], text

    def _births(self):
        """(the masks of given(), whether 255 marks an object in them)."""
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


class SequenceReader(VideoReader):
    """The frames of sequences as training reads them."""

    def __init__(self, sequences: list[VosSequence]):
        self.sequences, self.names = sequences, [sequence.name for sequence in sequences]

    def length(self, video: int) -> int:
        return self.sequences[video].length

    def read(self, video: int, frame_ids: Sequence[int]) -> list[np.ndarray]:
        return [decode(self.sequences[video].images[i]) for i in frame_ids]


def read_frame(path: Path) -> np.ndarray:
    """Decode a picture -> uint8 RGB [H,W,3].  Raises UserError where the file is missing or damaged."""
    try:
        return decode(path)
    except UnreadableFrame as error:
        raise UserError(f"{error}; restore this frame") from error


def davis(root: str | Path, split: str = "val", names: list[str] | None = None, births=False) -> list[VosSequence]:
    """DAVIS 2017: root/{JPEGImages,Annotations}/480p/<sequence>, root/ImageSets/2017/<split>.txt.

    Every frame is written.  The annotation of the first frame is given; with births, all annotations are, so that an
    object that enters later is born at the first annotation that holds it.  names: of the sequences, None = all.
    Raises UserError for another layout and for an unknown name.
    """
    root = Path(root)
    path = root / "ImageSets" / "2017" / f"{split}.txt"
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: missing; {root} must be in DAVIS layout: ImageSets/2017/{split}.txt, "
            "JPEGImages/480p/<sequence>/, Annotations/480p/<sequence>/"
        )
    known = text_of(path).split()
    if not known:
        raise UserError(f"{path}: names no sequence; expected one name a line")
    for name in known:
        if Path(name).name != name or name == "..":  # masks are written to folders of these names
            raise UserError(f"{path}: {name!r}: must be the name of a folder in {root / 'JPEGImages' / '480p'}")
    sequences = []
    for name in _chosen(known, names):
        images, folder = pictures(root / "JPEGImages" / "480p" / name), root / "Annotations" / "480p" / name
        masks = _existing(folder / f"{image.stem}.png" for image in images)
        if masks[0] is None:
            raise UserError(f"{folder / images[0].stem}.png: missing; the first annotation says what to follow")
        given = masks if births else (masks[0],) + (None,) * (len(images) - 1)
        annotations = folder if all(masks) else None
        sequences.append(VosSequence(name, images, given, (True,) * len(images), annotations))
    return sequences


#: The made sample set: as DAVIS, but an object that enters later is followed, too.
sample = partial(davis, births=True)


def ytvos(root: str | Path, names: list[str] | None = None) -> list[VosSequence]:
    """YouTube-VOS: root/valid/{JPEGImages,Annotations}/<video>; root may also be that valid/ itself.

    Every mask in Annotations is given.  Masks are propagated through all frames of valid_all_frames/JPEGImages, which
    stands beside valid/, and written for the frames of valid/.  Without it they are propagated through the frames of
    valid/ alone, and the remark says so.  names: of the sequences, None = all.  Raises UserError as `davis` does.
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
    if every_frame.is_dir():
        return [_ytvos(valid, name, every_frame / name) for name in _chosen(videos, names)]
    remark = (
        "valid_all_frames/JPEGImages is not there beside valid/: every fifth frame alone gives other figures than the "
        "published ones, for which masks were propagated through all frames"
    )
    return [_ytvos(valid, name, valid / "JPEGImages" / name, remark) for name in _chosen(videos, names)]


def _ytvos(valid, name, folder, remark=None):
    """The VosSequence of one video.  folder: of the frames through which masks are propagated."""
    images = pictures(folder)
    written = {image.stem: image for image in pictures(valid / "JPEGImages" / name)}
    masks = {mask.stem: mask for mask in pictures(valid / "Annotations" / name)}
    stems = [image.stem for image in images]
    for path in (*masks.values(), *written.values()):
        if path.stem not in stems:
            raise UserError(f"{path}: no frame of that name in {folder}")
    flags = tuple(stem in written for stem in stems)
    return VosSequence(name, images, tuple(map(masks.get, stems)), flags, remark=remark)


def listed(file: str | Path, root: str | Path, names: list[str] | None = None) -> list[VosSequence]:
    """The sequences of a text file with `flag image mask` a line; paths are relative to root, a leading / is allowed.

    flag 0: propagate through the frame, but do not write its mask.  The images of one folder are a video.  A mask that
    is left out, `-` or a file that does not exist is not given.  Paths with spaces stand in quotes, or tabs separate
    the columns.  names: of the sequences, None = all.  Raises UserError for a list that cannot be used.
    """
    file, root = Path(file), Path(root)
    videos: dict[Path, list] = {}
    for number, line in enumerate(text_of(file, "name a text file").splitlines(), 1):
        if not line.strip():
            continue
        flag, image, mask = _columns(line, f"{file}:{number}")
        if not os.path.isfile(root / image):
            raise UserError(f"{file}:{number}: {root / image} does not exist (paths are relative to {root})")
        folder = Path(os.path.abspath(root / image)).parent  # Path(".") has no name
        videos.setdefault(folder, []).append((root / image, root / mask if mask else None, flag == "1"))
    if not videos:
        raise UserError(f"{file}: names no frame; expected `flag image mask` a line")
    _once(file, [folder.name for folder in videos], "two videos whose folders are both named")
    folders = {folder.name: folder for folder in videos}
    return [_listed(file, folders[name], videos[folders[name]]) for name in _chosen(list(folders), names)]


def text_of(path: Path, advice: str = "expected one name a line") -> str:
    """The text of a list, UTF-8 with or without a byte-order mark.  Raises UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {advice}") from error


def _columns(line, where):
    """flag, image and mask (None: not given) of a line.  where: file and line number, for the UserError."""
    flag, *rest = line.strip().split(None, 1)
    # One tab behind the flag is enough: then tabs separate all columns, and the paths may hold spaces.
    tabs = (word.strip() for word in "".join(rest).split("\t"))
    words = [word for word in tabs if word] if "\t" in line else list(map("".join, WORD.findall("".join(rest))))
    if len(line) > LONGEST or flag not in ("0", "1") or len(words) not in (1, 2):
        raise UserError(
            f"{where}: {line[:200]!r}: expected `flag image mask`, flag 0 or 1; the mask may be left out; "
            "names with spaces stand in quotes, or tabs separate the columns"
        )
    image, mask = (*words, "-")[:2]
    return flag, image.lstrip("/"), None if mask == "-" else mask.lstrip("/")


def _listed(file, folder, rows):
    images, masks, written = zip(*rows)
    _once(file, [image.stem for image in images], f"in {folder} two frames named")
    there = _existing(masks)
    if not any(there):
        named = next((f"{mask} is no file" for mask in masks if mask), "no line names one")
        raise UserError(f"{file}: {folder.name} has no mask to start from: {named}; add the mask of its first frame")
    if not any(written):
        raise UserError(f"{file}: {folder.name} has no frame to write: every line has flag 0; flag 1 writes a frame")
    annotations = None
    if all(there) and all(written):  # the PNGs of the folder may be the annotations of these very frames
        wanted = {there[0].parent / f"{image.stem}.png" for image in images}
        annotations = there[0].parent if set(there) == wanted == set(there[0].parent.glob("*.png")) else None
    return VosSequence(folder.name, images, there, written, annotations)


def _existing(masks):
    """The files of masks; None for a mask whose file does not exist."""
    return tuple(mask if mask and os.path.isfile(mask) else None for mask in masks)


def _once(file, names, problem):
    """Raise UserError where a name occurs twice: `problem` and the name are in its message."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"{file}: {problem} {twice[0]!r}; one would overwrite the other")


def pictures(folder: Path) -> tuple[Path, ...]:
    """The JPEG and PNG files of a folder, sorted by name, numbers as numbers.  Raises UserError where there is none."""
    try:
        names, folders = list_folder(folder, SUFFIXES)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: there is no such folder, or it cannot be read ({error})") from None
    if not names:
        inside = f"; it holds folders ({', '.join(folders[:3])}), name one of them" if folders else ""
        raise UserError(f"{folder}: holds no JPEG or PNG file; one a frame is expected{inside}")
    found = tuple(folder / name for name in names)
    _once(folder, [path.stem for path in found], "two pictures are named")
    return found


def _chosen(known, names):
    """names without repetitions, or all known names where names is None.  Raises UserError for an unknown name."""
    for name in names or ():
        if name not in known:
            there = f"{', '.join(list(known)[:20])}{', ...' if len(known) > 20 else ''}"
            raise UserError(f"sequence {name!r} does not exist{suggestion(name, known)}; there are: {there}")
    return list(dict.fromkeys(known if names is None else names))
