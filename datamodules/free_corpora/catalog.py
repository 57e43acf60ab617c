"""The recipes and the soundfonts by name. Minutes and megabytes were measured with the packages of Debian 12."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from datamodules.free_corpora.contract import Recipe
from datamodules.free_corpora.credits import DebianCopyright, LicenceList, Stated
from datamodules.free_corpora.music import AudioFiles, MidiLumps, ZippedAudio

_NAEV = "usr/share/naev/dat/snd"
_NAEV_LICENCES = {
    "GPLv2+": "GPL-2+",
    "GPLv3": "GPL-3",
    "GPLv3 / CC-by 3": "CC-BY-3.0 or GPL-3",
    "CC-by 3": "CC-BY-3.0",
    "CC-by 3.0": "CC-BY-3.0",
    "CC-by-sa 3.0": "CC-BY-SA-3.0",
    "CC-by-sa 4.0": "CC-BY-SA-4.0",
    "CC0": "CC0-1.0",
    "PD": "public-domain",
}


@dataclass(frozen=True)
class Soundfont:
    """A soundfont: Debian's package, its path there, its licence, megabytes to download."""

    package: str
    pattern: str
    licence: str
    megabytes: int


_RECIPES = (
    Recipe(
        name="freedoom",
        summary="66 tracks of rock, metal and ambient for synthesizer, rendered to FLAC",
        package="freedoom",
        music=MidiLumps(("usr/share/games/doom/freedoom1.wad", "usr/share/games/doom/freedoom2.wad")),
        credits=Stated("Freedoom contributors (LICENSES/freedoom/CREDITS)", "BSD-3-clause"),
        minutes=181,
        megabytes=50,
        licence="BSD-3-clause; soundfont MIT",
    ),
    Recipe(
        name="naev",
        summary="electronic and orchestral, Vorbis",
        package="naev-data",
        music=AudioFiles(f"{_NAEV}/music"),
        credits=LicenceList(f"{_NAEV}/SOUND_LICENSE.yaml", f"{_NAEV}/soundtrack.yaml", _NAEV_LICENCES),
        minutes=128,
        megabytes=350,
        licence="by file: CC-BY, CC-BY-SA, CC0, GPL",
    ),
    Recipe(
        name="0ad",
        summary="orchestral and world music, Vorbis",
        package="0ad-data",
        music=ZippedAudio("usr/share/games/0ad/mods/public/public.zip", "audio/music"),
        credits=Stated("Wildfire Games", "CC-BY-SA-3.0"),
        minutes=175,
        megabytes=1378,
        licence="CC-BY-SA-3.0",
    ),
    Recipe(
        name="ufoai",
        summary="electronic and orchestral, Vorbis",
        package="ufoai-music",
        music=ZippedAudio("usr/share/games/ufoai/base/0music.pk3", "music"),
        credits=DebianCopyright("base/music/"),
        minutes=139,
        megabytes=210,
        licence="by file: CC-BY-3.0, CC-BY-SA-3.0 (GPL left out)",
        accepted=("CC*",),
    ),
    Recipe(
        name="hyperrogue",
        summary="ambient",
        package="hyperrogue-music",
        music=AudioFiles("usr/share/hyperrogue/music"),
        credits=DebianCopyright("music/"),
        minutes=23,
        megabytes=64,
        licence="CC-BY-SA-3.0",
        held_out=True,
    ),
    Recipe(
        name="unknown-horizons",
        summary="orchestral and folk",
        package="unknown-horizons",
        music=AudioFiles("usr/share/unknown-horizons/content/audio/music"),
        credits=DebianCopyright("content/audio/music/"),
        minutes=43,
        megabytes=248,
        licence="CC-BY-SA-3.0",
        held_out=True,
    ),
    Recipe(
        name="marsshooter",
        summary="metal and rock",
        package="marsshooter-data",
        music=AudioFiles("usr/share/games/marsshooter/audio", ("music/*.ogg", "menu.ogg", "tutorial.ogg")),
        credits=DebianCopyright("data/audio/"),
        minutes=59,
        megabytes=68,
        licence="CC-BY-SA-3.0",
        held_out=True,
    ),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}
SOUNDFONTS: Mapping[str, Soundfont] = {
    "small": Soundfont("musescore-general-soundfont-small", "usr/share/sounds/sf3/*.sf3", "MIT", 34),
    "lossless": Soundfont("musescore-general-soundfont-lossless", "usr/share/sounds/sf?/*.sf?", "MIT", 330),
}
