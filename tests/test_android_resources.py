"""Lint of the demo app's resources: both languages whole, contrast, touch targets, no text outside of them."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

APP = Path(__file__).parents[1] / "android-demo" / "app" / "src" / "main"
RES = APP / "res"
NS = "{http://schemas.android.com/apk/res/android}"
LAYOUTS = sorted((RES / "layout").glob("*.xml"))
CODE = {path: path.read_text() for path in sorted((APP / "java").rglob("*.java"))}
XML = sorted([*RES.rglob("*.xml"), APP / "AndroidManifest.xml"])
THEMES = ("values", "values-night")


def values(folder: str, name: str, tag: str) -> dict[str, str]:
    root = ElementTree.parse(RES / folder / f"{name}.xml").getroot()  # noqa: S314 (our own file)
    found = [(item.attrib["name"], "".join(item.itertext())) for item in root.iter(tag)]
    assert len(found) == len(dict(found)), f"{folder}/{name}.xml: a name stands twice"
    return dict(found)


ENGLISH = values("values", "strings", "string")
CHINESE = values("values-zh", "strings", "string")


def test_both_languages_are_whole() -> None:
    assert list(ENGLISH) == list(CHINESE)
    for name, english in ENGLISH.items():
        chinese = CHINESE[name]
        assert sorted(re.findall(r"%\d\$[sd]", english)) == sorted(re.findall(r"%\d\$[sd]", chinese)), name
        assert re.search(r"[\u4e00-\u9fff]", chinese) or not re.sub(r"%\d\$[sd]|\W", "", chinese), name
        assert not re.search(r"[\u3000-\u9fff]", english), name
        assert english.strip() == english and chinese.strip() == chinese and english and chinese, name
        for text in (english, chinese):  # aapt2 drops what an apostrophe or a quote starts
            assert not re.search(r"(?<!\\)['\"]", text), name


def test_each_string_is_used_and_each_used_one_is_there() -> None:
    text = "".join(CODE.values()) + "".join(path.read_text() for path in XML)
    used = set(re.findall(r"R\.string\.(\w+)|@string/(\w+)", text))
    assert {a or b for a, b in used} == set(ENGLISH)


@pytest.mark.parametrize("kind", ["color", "dimen", "drawable", "layout", "style"])
def test_no_resource_is_left_over(kind: str) -> None:
    files = {path.stem for path in (RES / kind).glob("*.xml")} if kind in ("drawable", "layout") else set()
    listed = {"color": "colors", "dimen": "dimens", "style": "styles"}
    there = files or set(values("values", listed[kind], kind))
    text = "".join(CODE.values()) + "".join(path.read_text() for path in XML)
    used = {a or b for a, b in re.findall(rf'R\.{kind}\.(\w+)|[@"]{kind}/([\w.]+)', text)}
    if kind == "style":
        used |= set(re.findall(r'parent="([A-Z][\w.]+)"', text))
    assert used == there


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.1."""
    assert re.fullmatch("#[0-9A-F]{6}", color), f"{color}: expected an opaque colour"
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", THEMES)
def test_contrast(theme: str) -> None:
    """4.5 for text on what it lies on: on_X on X, quiet and links on the grounds that they are used on."""
    colors = values(theme, "colors", "color")
    pairs = [(f"on_{ground}", ground) for ground in colors if f"on_{ground}" in colors]
    pairs += [("quiet", "background"), ("quiet", "surface"), ("accent", "background"), ("on_background", "surface")]
    assert {name for pair in pairs for name in pair} == set(colors)
    for text, ground in pairs:
        assert contrast(colors[text], colors[ground]) >= 4.5, f"{theme}: {text} on {ground}"


def test_both_themes_have_the_same_colours_and_no_other_place_has_any() -> None:
    assert list(values("values", "colors", "color")) == list(values("values-night", "colors", "color"))
    for path in XML:
        if path.name != "colors.xml" and not path.name.startswith("ic_"):
            assert not re.search(r'"#[0-9a-fA-F]+"|>#[0-9a-fA-F]+<', path.read_text()), path.name


STYLES = {
    style.attrib["name"]: {item.attrib["name"]: item.text or "" for item in style}
    for style in ElementTree.parse(RES / "values" / "styles.xml").getroot()  # noqa: S314
}


def attributes(element: ElementTree.Element) -> dict[str, str]:
    """What an element says, over what its style says."""
    style = STYLES.get(element.get("style", "").removeprefix("@style/"), {})
    own = {"android:" + k.removeprefix(NS): v for k, v in element.attrib.items() if k.startswith(NS)}
    return style | own


def dp(size: str) -> float:
    size = values("values", "dimens", "dimen").get(size.removeprefix("@dimen/"), size)
    return float(size.removesuffix("dp")) if size.endswith("dp") else 0


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda p: p.stem)
def test_touch_targets_are_large_enough(layout: Path) -> None:
    """48 dp each way for what is tapped: fixed, at least, or as wide as what it lies in."""
    for element in ElementTree.parse(layout).getroot().iter():  # noqa: S314
        says = attributes(element)
        if element.tag in ("Button", "ImageButton", "EditText") or says.get("android:clickable") == "true":
            for side, least in (("width", "minWidth"), ("height", "minHeight")):
                size = says[f"android:layout_{side}"]
                filled = size == "match_parent" or (side == "width" and says.get("android:layout_weight") == "1")
                large = filled or max(dp(size), dp(says.get(f"android:{least}", ""))) >= 48
                assert large, f"{layout.name}: {says.get('android:id')}: {side} {size}"
    if layout.stem == "row_item":  # all of it is tapped
        assert dp(attributes(ElementTree.parse(layout).getroot())["android:minHeight"]) >= 48  # noqa: S314


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda p: p.stem)
def test_layouts_can_be_read_aloud_translated_and_enlarged(layout: Path) -> None:
    for element in ElementTree.parse(layout).getroot().iter():  # noqa: S314
        says = attributes(element)
        where = f"{layout.name}: {says.get('android:id', element.tag)}"
        for key in ("text", "hint", "contentDescription", "title"):
            assert says.get(f"android:{key}", "@string/").startswith("@string/"), where
        if element.tag == "ImageButton":
            assert "android:contentDescription" in says, where
        if element.tag in ("TextView", "Button", "EditText"):
            assert re.fullmatch(r"\d+sp", says["android:textSize"]), where
            assert says["android:textColor"].startswith("@color/"), where
            assert int(says["android:textSize"].removesuffix("sp")) >= 14, where
            assert says["android:layout_height"] == "wrap_content", f"{where}: large text needs room"
        for key, value in says.items():  # left and right change sides in some languages
            assert not re.search("Left|Right", key), f"{where}: {key}"
            assert "ravity" not in key or not re.search("left|right", value), f"{where}: {key}"


def test_what_has_a_direction_turns_with_the_language() -> None:
    manifest = ElementTree.parse(APP / "AndroidManifest.xml").getroot()  # noqa: S314
    assert [a.get(f"{NS}supportsRtl") for a in manifest.iter("application")] == ["true"]
    for name in ("ic_back", "ic_send"):
        icon = ElementTree.parse(RES / "drawable" / f"{name}.xml").getroot()  # noqa: S314
        assert icon.get(f"{NS}autoMirrored") == "true", name
    assert not re.search(r"Gravity\.(LEFT|RIGHT)", "".join(CODE.values()))


def test_what_is_typed_and_handed_on_fits_into_a_call() -> None:
    """All calls of a process share a buffer of 1 MB, with two bytes a character; a larger one ends the app."""
    [box] = [e for e in ElementTree.parse(RES / "layout" / "chat.xml").getroot().iter() if e.tag == "EditText"]  # noqa: S314
    assert 2 * int(box.attrib[f"{NS}maxLength"]) < 500_000
    words = next(code for path, code in CODE.items() if path.stem == "Words")
    limit = int(re.findall(r"LONGEST = ([\d_]+);", words)[0].replace("_", ""))
    assert 2 * limit < 500_000
    assert words.count("if (tooLong(context, text))") == len(re.findall(r"setPrimaryClip|ACTION_SEND", words)) == 2


def test_the_code_says_nothing_of_its_own() -> None:
    """A text for the user comes from strings.xml: other literals are a command, a separator or a name."""
    for path, code in CODE.items():
        plain = re.sub(r"/\*.*?\*/|//[^\n]*", "", code, flags=re.DOTALL)
        for literal in re.findall(r'"((?:[^"\\]|\\.)*)"', plain):
            allowed = literal in ("adb push model.gguf ", " · ", " ")
            technical = re.fullmatch(r"[a-z0-9_./*+\-\[\]{},]*|[A-Z]\w*|%\.1f|…|, |: ", literal)
            assert allowed or (technical and not re.match("[A-Z][a-z]", literal)), f"{path.name}: {literal!r}"


KINDS = {
    "View": {"TextView", "Button", "EditText", "ImageButton", "ProgressBar", "ListView", "ScrollView", "LinearLayout"},
    "ViewGroup": {"LinearLayout", "ScrollView", "ListView"},
    "TextView": {"TextView", "Button", "EditText"},
}


def views(layouts: set[str]) -> dict[str, set[str]]:
    """Id → the kinds of view that have it in these layouts."""
    found: dict[str, set[str]] = {}
    for layout in layouts:
        for element in ElementTree.parse(RES / "layout" / f"{layout}.xml").getroot().iter():  # noqa: S314
            if name := element.get(f"{NS}id"):
                found.setdefault(name.removeprefix("@+id/"), set()).add(element.tag)
    return found


def test_the_code_finds_the_views_that_the_layouts_have() -> None:
    """What else would end the app on the screen: an id of another layout, or a view of another class."""
    for path, code in CODE.items():
        also = {"Rows": {"chat"}, "Words": {"chat", "list"}}.get(path.stem, set())
        there = views(set(re.findall(r"R\.layout\.(\w+)", code)) | also)
        for name in re.findall(r"R\.id\.(\w+)", code):
            assert name in there, f"{path.name}: {name}"
        typed = re.findall(r"(\w+) \w+ = (?:\w+(?:\(\w\))?\.)?findViewById\(R\.id\.(\w+)\)", code)
        typed += re.findall(r"\(\((\w+)\) (?:\w+\.)?findViewById\(R\.id\.(\w+)\)\)", code)
        assert typed or "findViewById" not in code or path.stem == "Words"
        for kind, name in typed:
            assert there[name] <= KINDS.get(kind, {kind}), f"{path.name}: {name} is {there[name]}"


def arguments(code: str, start: int) -> int:
    """How many arguments follow before the bracket closes that is open at `start`."""
    depth, count = 1, 0
    for c in code[start:]:
        depth += (c in "(") - (c in ")")
        if depth == 0:
            return count
        count += c == "," and depth == 1
    raise AssertionError("a bracket stays open")


def test_each_text_gets_what_it_has_room_for() -> None:
    found = set()
    for path, code in CODE.items():
        for match in re.finditer(r"getString\(R\.string\.(\w+)(?= ?[,)])", code):
            places = len(set(re.findall(r"%\d\$[sd]", ENGLISH[match[1]])))
            assert arguments(code, match.end()) == places, f"{path.name}: {match[1]}"
            found.add(match[1])
    assert {name for name, text in ENGLISH.items() if "%1$" in text and not name.startswith("bad_")} <= found


def test_the_manifest_asks_for_nothing() -> None:
    manifest = ElementTree.parse(APP / "AndroidManifest.xml").getroot()  # noqa: S314
    assert [e.tag for e in manifest.iter() if "permission" in e.tag or e.tag in ("uses-feature", "queries")] == []
    application = manifest.find("application")
    assert application is not None
    assert application.get(f"{NS}extractNativeLibs") == "true" and application.get(f"{NS}allowBackup") == "false"
    exported = [a.get(f"{NS}name") for a in application if a.get(f"{NS}exported") != "false"]
    assert exported == [".ChatActivity"]
    declared = {a.get(f"{NS}name", "").removeprefix(".") for a in application.iter("activity")}
    assert declared == {path.stem for path, code in CODE.items() if "extends Activity" in code}


def test_each_engine_that_the_core_names_is_built_by_gradle() -> None:
    """make's build is checked in the built app; nothing else runs this file."""
    core = (APP.parents[2] / "core/src/main/java/org/sampan/core/Cpu.java").read_text()
    gradle = (APP.parents[1] / "build.gradle").read_text()
    engines = re.findall(r'"(lib\w+\.so)"', core)
    assert engines and engines == re.findall(r'"(lib\w+\.so)":', gradle)
