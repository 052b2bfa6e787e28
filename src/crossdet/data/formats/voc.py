"""PASCAL VOC annotations (one XML per image) to and from an `Index`, several years at once.

Source: the VOC development kit. Its boxes are 1-based with both corners inside; the index is zero-based and
half-open, so (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax). VOC2012 has float coordinates
and `part` boxes inside objects: only the `object` children of the root and their own `bndbox` are read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ElementTree, ParseError, SubElement, TreeBuilder, indent

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from crossdet.data.annotation_files import (
    OF_MACOS,
    PICTURE_SUFFIXES,
    files_below,
    header_sizes,
    is_number,
    is_there,
    raise_if_any,
    read_bytes,
    read_lines,
)
from crossdet.data.formats.format import ANY, OPTIONAL, Format, Needed, SplitFiles
from crossdet.data.formats.tree import LOOKED_AT, WORDS, Found, Refused, Tree, walk, without_suffix
from crossdet.data.index import CANNOT_BE_READ, NOT_FOUND, OTHER_SPELLING, XML_BELOW, Index, IndexBuilder
from crossdet.data.spellings import spelt_otherwise
from crossdet.errors import AnnotationError
from crossdet.files import safe_names
from crossdet.labels.patterns import class_name
from crossdet.types import REGION_FLAGS, Flag
from crossdet.yaml_text import flow

SAMPLED = 20
"""XML files of a folder, of which one has to be of PASCAL VOC; one that is damaged is told later."""
SHOWN = 3
"""Folders that a message names before it only counts."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Entry:
    """One image of a split. place: the image-set line (or the XML) that lists it; year: which folder."""

    name: str
    xml: Path
    year: int
    place: str


@dataclass(frozen=True)
class VocObject:
    """corners: xmin, ymin, xmax, ymax as they stand, 1-based, both corners inside. place: "file:line"."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool
    place: str


@dataclass
class VocImage:
    """One XML. size: (height, width), (0, 0) where it gives none."""

    filename: str = ""
    size: tuple[int, int] = (0, 0)
    objects: list[VocObject] = field(default_factory=list)


def read_voc(
    annotations: Sequence[Path],
    images: Sequence[Path],
    image_sets: Sequence[Path] = (),
    classes: Sequence[str] | None = None,
) -> Index:
    """Reads the XMLs of one or more years: folders of XMLs and of images, and an image set each.

    Without image sets: every XML, by name. Classes: as given, else the names found, sorted.
    """
    problems: list[str] = []
    below: list[Path] = []
    entries = list_entries(annotations, image_sets, problems, below)
    not_read = [] if image_sets else _xmls_below(annotations, below, {entry.year for entry in entries})
    parsed = [parse_xml(entry.xml, problems) for entry in entries]
    names = sorted({item.name for image in parsed for item in image.objects}) if classes is None else classes
    position = {name: i for i, name in enumerate(names)}
    problems += [
        f"{item.place}: unknown class {item.name!r}; the dataset's classes are {', '.join(names)}"
        for image in parsed
        for item in image.objects
        if item.name not in position
    ]
    raise_if_any(", ".join(str(folder) for folder in annotations), problems)

    listings = [set(files_below(folder)) for folder in images]
    files, otherwise = _image_files(entries, parsed, images, listings)
    without = [i for i, image in enumerate(parsed) if image.size == (0, 0)]
    for row, size in zip(without, header_sizes([files[row] for row in without]), strict=True):
        parsed[row].size = size or (0, 0)
    root = os.path.commonpath(images) if len(images) > 1 else str(images[0])
    builder = IndexBuilder(root)
    for xml in not_read:
        builder.skip(XML_BELOW, str(xml))
    for row in otherwise:
        builder.skip(OTHER_SPELLING, f"{entries[row].xml}: its picture is {files[row]}")
    for entry, image, file in zip(entries, parsed, files, strict=True):
        builder.image(Path(os.path.relpath(file, root)).as_posix(), *image.size)
        if Path(os.path.relpath(file, images[entry.year])).as_posix() not in listings[entry.year]:
            builder.skip(NOT_FOUND, f"{entry.place}: {file}")
        elif image.size == (0, 0):
            builder.skip(CANNOT_BE_READ, f"{entry.place}: {file}")
        for item in image.objects:
            xmin, ymin, xmax, ymax = item.corners
            flags = int(Flag.DIFFICULT) if item.difficult else 0
            builder.box((xmin - 1, ymin - 1, xmax, ymax), position[item.name], flags, place=item.place)
    return builder.build(names)


def list_entries(
    annotations: Sequence[Path],
    image_sets: Sequence[Path],
    problems: list[str] | None = None,
    below: list[Path] | None = None,
) -> list[Entry]:
    """The images that the image sets (else the folders of XMLs) list; missing XMLs go to `problems`, folders within
    those of XMLs to `below`."""
    entries: list[Entry] = []
    noted: list[str] = [] if problems is None else problems
    for year, folder in enumerate(annotations):
        try:
            with os.scandir(folder) as found:
                there = list(found)
        except OSError as error:
            raise AnnotationError(f"{folder}: cannot be listed ({error.strerror})") from None
        xmls = {file.name[:-4]: folder / file.name for file in there if _is_xml(file.name)}
        if below is not None and len(xmls) < len(there):
            below += sorted(folder / e.name for e in there if not e.name.startswith(".") and e.is_dir())
        if image_sets:
            listed = _image_set(image_sets[year], {f"{stem}.xml" for stem in xmls}, noted)
        else:
            listed = ((name, str(file)) for name, file in sorted(xmls.items()))
        for name, place in listed:
            file = xmls.get(name, folder / f"{name}.xml")
            if name in xmls or is_there(file):
                entries.append(Entry(name, file, year, place))
            else:
                noted.append(f"{place}: {name!r} has no {folder / name}.xml; add that file or remove the line")
    return entries


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml") and not name.startswith(OF_MACOS)


def _xmls_below(annotations: Sequence[Path], below: Sequence[Path], read: set[int]) -> list[Path]:
    """XMLs in the folders `below` those of the annotations, which nobody reads: their pictures are in no split.

    Objects of these are lost, and nothing is background by it; they may be a copy of before. So they are told and
    no mistake, unless a folder holds no others. read: positions of the folders that hold some.
    Raises `AnnotationError` for these, and where there is no XML at all.
    """
    found: dict[Path, list[Path]] = {}
    for folder in below:
        for parent, inner, names in islice(walk(folder), LOOKED_AT):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            if xmls := [Path(parent) / name for name in sorted(names) if _is_xml(name)]:
                found[Path(parent)] = xmls
    found = {folder: xmls for folder, xmls in found.items() if folder not in annotations}
    problems = []
    for year, folder in enumerate(annotations):
        mine = {inner: xmls for inner, xmls in found.items() if folder in inner.parents}
        if year not in read and mine:
            where = ", ".join(f"{len(xmls):,} are in {inner}" for inner, xmls in islice(mine.items(), SHOWN))
            more = f", and more in {len(mine) - SHOWN:,} others" if len(mine) > SHOWN else ""
            cure = flow([*map(str, islice(mine, SHOWN)), *(["..."] if more else [])])
            problems.append(f"no XML in {folder} ({where}{more}); say `annotations: {cure}`, and `images` for each")
    if not problems and not read:
        problems.append(f"no XML in {', '.join(map(str, annotations))}; expected one for each picture")
    raise_if_any("annotations", problems)
    return [xml for xmls in found.values() for xml in xmls]


def write_voc(index: Index, root: Path, image_set: str) -> None:
    """Writes Annotations/*.xml and ImageSets/Main/<image_set>.txt below `root`; images are not copied.

    VOC has one flag: regions (CROWD, IGNORE_REGION, AVOID) and INVALID rows are written as difficult, a
    region of no class once per class. `filename` is the image's path below `index.root`. An XML has the image's
    name, by `safe_names`.
    """
    folder = root / "Annotations"
    folder.mkdir(parents=True, exist_ok=True)
    names = [PurePosixPath(index.names[row]) for row in range(len(index))]
    stems = Counter(name.stem for name in names)
    ids = safe_names([n.stem if stems[n.stem] == 1 else str(n.with_suffix("")).replace("/", "_") for n in names])
    for row, (name, number) in enumerate(zip(names, ids, strict=True)):
        tree = ElementTree(_to_xml(index, row, name))
        indent(tree, "\t")
        tree.write(folder / f"{number}.xml", encoding="utf-8")
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True, exist_ok=True)
    (sets / f"{image_set}.txt").write_text("".join(f"{number}\n" for number in ids))


def _to_xml(index: Index, row: int, name: PurePosixPath) -> Element:
    root = Element("annotation")
    SubElement(root, "filename").text = str(name)
    size = SubElement(root, "size")
    for tag, value in zip(("height", "width", "depth"), (*index.sizes[row].tolist(), 3), strict=True):
        SubElement(size, tag).text = str(value)
    rows = index.rows(row)
    columns = (index.boxes[rows].tolist(), index.labels[rows].tolist(), index.flags[rows].tolist())
    for (x1, y1, x2, y2), label, flags in zip(*columns, strict=True):
        hard = bool(flags & (REGION_FLAGS | Flag.INVALID | Flag.DIFFICULT))
        for position in range(len(index.classes)) if label < 0 else (label,):
            item = SubElement(root, "object")
            SubElement(item, "name").text = index.classes[position]
            SubElement(item, "difficult").text = str(int(hard))
            box = SubElement(item, "bndbox")
            for tag, value in zip(CORNERS, (x1 + 1, y1 + 1, x2, y2), strict=True):
                SubElement(box, tag).text = str(int(value)) if value.is_integer() else repr(value)
    return root


# ------------------------------------------------------------------------------------------- text -> rows


def _image_set(file: Path, xmls: set[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    """(id, place) of each line; a per-class set has a second column: -1 = the class is not in the image."""
    first: dict[str, int] = {}
    for number, line in enumerate(read_lines(file), start=1):
        name = line.strip()
        if not name:
            continue
        parts = name.rsplit(None, 1)
        if len(parts) == 2 and f"{name}.xml" not in xmls:
            name = parts[0]
            if parts[1] not in ("-1", "0", "1"):
                problems.append(f"{file}:{number}: {line.strip()!r}, expected an image id, or an id and -1, 0 or 1")
                continue
            if parts[1] == "-1":
                continue
        if name in first:
            problems.append(
                f"{file}:{number}: {name!r} is already listed on line {first[name]}; remove one of the two"
            )
            continue
        first[name] = number
        yield name, f"{file}:{number}"


class _LineBuilder(TreeBuilder):
    """Builds the tree and remembers on which line each `object` starts."""

    def __init__(self) -> None:
        super().__init__()
        self.parser = DefusedXMLParser(target=self)
        self.lines: dict[Element, int] = {}

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        element = super().start(tag, attrs)
        if tag == "object":
            self.lines[element] = self.parser.parser.CurrentLineNumber
        return element


def parse_xml(xml: Path, problems: list[str]) -> VocImage:
    """Reads one XML; what is wrong with it goes to `problems`, the objects concerned are left out."""
    builder = _LineBuilder()
    try:
        builder.parser.feed(read_bytes(xml))
        root = builder.parser.close()
    except AnnotationError as error:
        problem = str(error)
    except ParseError as error:
        problem = f"{xml}:{error.position[0]}: malformed XML ({error}); repair or replace the file"
    except DefusedXmlException as error:
        problem = f"{xml}: refused XML with entities ({error}); remove its DOCTYPE"
    except (ValueError, LookupError) as error:
        problem = f"{xml}:1: the XML's encoding cannot be read ({error}); save the file as UTF-8"
    else:
        wrong = f"{xml}:1: the root element is <{root.tag}>, expected VOC's <annotation>"
        problem = "" if root.tag == "annotation" else wrong
    if problem:
        problems.append(problem)
        return VocImage()
    image = VocImage((root.findtext("filename") or "").strip(), _size(root))
    for element in root.findall("object"):
        item = _object(element, f"{xml}:{builder.lines[element]}", problems)
        if item is not None:
            image.objects.append(item)
    return image


def _size(root: Element) -> tuple[int, int]:
    """(height, width) as annotated, (0, 0) where missing or no size of a picture."""
    try:
        height, width = (int(float(root.findtext(f"size/{tag}") or 0)) for tag in ("height", "width"))
    except (ValueError, OverflowError):
        return 0, 0
    return (height, width) if 0 < height < 2**31 and 0 < width < 2**31 else (0, 0)


def _object(element: Element, place: str, problems: list[str]) -> VocObject | None:
    name = class_name(element.findtext("name") or "")
    box = element.find("bndbox")
    difficult = (element.findtext("difficult") or "0").strip() or "0"
    difficult = "0" if difficult.lower() == "unspecified" else difficult  # of some years of VOC itself
    if not name:
        problems.append(f"{place}: <object> without <name>; add the class name")
        return None
    if difficult not in ("0", "1"):
        problems.append(f"{place}: <difficult> of {name!r} is {difficult!r}, expected 0 or 1")
        return None
    if box is None:
        problems.append(f"{place}: <object> {name!r} without <bndbox>; add its box or remove the object")
        return None
    texts = {tag: (box.findtext(tag) or "").strip() for tag in CORNERS}
    if bad := ", ".join(f"{tag} {text!r}" for tag, text in texts.items() if not is_number(text)):
        problems.append(f"{place}: <bndbox> of {name!r} has {bad}, expected four numbers {', '.join(CORNERS)}")
        return None
    xmin, ymin, xmax, ymax = (float(text) for text in texts.values())
    (xmin, xmax), (ymin, ymax) = sorted((xmin, xmax)), sorted((ymin, ymax))  # drawn from the other corner
    return VocObject(name, (xmin, ymin, xmax, ymax), difficult == "1", place)


# ------------------------------------------------------------------------------------------- image files


def _image_files(
    entries: list[Entry], parsed: list[VocImage], images: Sequence[Path], listings: list[set[str]]
) -> tuple[list[Path], list[int]]:
    """`filename` where it is a path in folders, or that file exists and only one XML names it; else the file named
    as the XML; else one that either may mean (`spelt_otherwise`). And the rows of the last.

    Whoever renames pictures renames their XMLs and leaves what stands in them: it may name another picture then.
    Raises `AnnotationError` where both exist, and where two XMLs are of one picture: objects would be background.
    """
    named = Counter((entry.year, image.filename) for entry, image in zip(entries, parsed, strict=True))
    of: dict[Path, Path] = {}
    files, problems, missing = [], [], {}
    for row, (entry, image) in enumerate(zip(entries, parsed, strict=True)):
        listing = listings[entry.year]
        alone = named[entry.year, image.filename] == 1
        said = image.filename if alone and image.filename in listing else ""
        alike = _named_as(entry.name, listing)
        files.append(images[entry.year] / (said or alike or f"{entry.name}{PICTURE_SUFFIXES[0]}"))
        if not said and not alike:
            missing[row] = [entry.name, *([image.filename] if alone else [])]
        if said and alike and "/" not in said and PurePosixPath(said).stem != entry.name:
            problems.append(
                f"{entry.xml}: its <filename> is {said}, and there is {alike}, too; of which of them it is "
                "cannot be told: mend its <filename>"
            )
        elif of.setdefault(files[-1], entry.xml) != entry.xml:
            problems.append(
                f"{entry.xml}: its picture {files[-1]} is that of {of[files[-1]]} as well; put the objects of both "
                "into one and remove the other, or make each folder of XMLs a dataset of its own"
            )
    raise_if_any("pictures of the XMLs", problems)
    places = {
        row: [f"{images[entries[row].year]}/{name}" for name in names if name and not name.startswith("/")]
        for row, names in missing.items()
    }
    otherwise = spelt_otherwise(places, [str(file) for file in of]) if places else {}
    for row, file in otherwise.items():
        files[row] = Path(file)
    return files, sorted(otherwise)


def _named_as(name: str, listing: set[str]) -> str:
    """The picture with the XML's name; empty where there is none."""
    candidates = (f"{name}{end}" for suffix in PICTURE_SUFFIXES for end in (suffix, suffix.upper()))
    return next((file for file in candidates if file in listing), "")


def _image_sets(files: SplitFiles) -> list[Path]:
    """A name stands for the file of that name below `ImageSets/Main`, beside its folder of XMLs."""
    sets = []
    for year, name in enumerate(files.image_set):
        if "/" in name or "\\" in name or Path(name).suffix:
            sets.append(Path(name).absolute())
        else:
            sets.append(files.annotations[year].parent / "ImageSets" / "Main" / f"{name}.txt")
    return sets


def _problems(files: SplitFiles) -> list[str]:
    years = len(files.annotations)
    problems = [] if years else ["`annotations` is empty, voc takes one or more folders of XML files"]
    for name, allowed in (("images", {years}), ("image_set", {0, years})):
        if (count := len(getattr(files, name))) not in allowed:
            problems.append(f"`{name}` has {count} entries, expected {years}: one per annotations folder")
    return problems


def _needs(files: SplitFiles) -> list[Needed]:
    return [
        *(Needed("images folder", path, folder=True) for path in files.images),
        *(Needed("annotations folder", path, folder=True) for path in files.annotations),
        *(Needed("image set", path) for path in _image_sets(files)),
    ]


def _depends(files: SplitFiles) -> list[Path | str]:
    sets, below = _image_sets(files), list[Path]()
    entries = list_entries(files.annotations, sets, below=below)
    return [*sets, *below, *(entry.xml for entry in entries)]


def _write(index: Index, root: Path, split: str) -> SplitFiles:
    write_voc(index, root, split)
    return SplitFiles((root / "Annotations",), (Path(index.root),), (split,), split=split)


def _parsed(xml: Path) -> VocImage | None:
    wrong: list[str] = []
    found = parse_xml(xml, wrong)
    return None if wrong else found


def _find(tree: Tree) -> Iterator[Found | Refused]:
    for folder, names in tree.folders.items():
        xmls = [folder / name for name in sorted(names) if _is_xml(name)]
        parsed = next(((at, found) for at, xml in enumerate(xmls[:SAMPLED]) if (found := _parsed(xml))), None)
        if parsed is None:
            continue
        at, first = parsed
        spellings = [[f"{x.stem}{end}" for s in PICTURE_SUFFIXES for end in (s, s.upper())] for x in xmls]
        spellings[at].append(first.filename or xmls[at].stem)
        images = tree.holding(spellings, folder)
        if images is None:
            yield Refused(folder, f"no pictures were found of its {len(xmls)} XML files")
            continue
        home = tree.home(folder)
        for split, image_set in _splits(tree, folder).items():
            files = SplitFiles((folder,), (images,), (image_set,) if image_set else (), split=split)
            problems: list[str] = []
            entries = list_entries(files.annotations, _image_sets(files), problems)
            if problems:
                yield Refused(folder, problems[0])
            else:
                yield Found(home, split, files, without_suffix(f"{images}/{e.name}.xml" for e in entries))


def _splits(tree: Tree, folder: Path) -> dict[str, str]:
    """Split -> image set beside a folder of XMLs; without image sets "" for the split of the folder's name."""
    sets = tree.folders.get(folder.parent / "ImageSets" / "Main", frozenset())
    there = {name for name in ("train", "val", "trainval", "test") if f"{name}.txt" in sets}
    if not there:
        return {tree.split_of(folder): ""}
    found = {name: name for name in WORDS if name in there}
    if "train" not in found and "trainval" in there:
        found["train"] = "trainval"
    return found


FORMAT = Format(
    read=lambda files: read_voc(files.annotations, files.images, _image_sets(files), files.classes),
    keys={"annotations": ANY, "images": ANY, "image_set": ANY, "classes": OPTIONAL},
    write=_write,
    problems=_problems,
    needs=_needs,
    depends=_depends,
    find=_find,
)
