"""Playlists as the standard wants them."""

from __future__ import annotations

from groundswell.media.hls import Piece, Rendition, master_playlist, media_playlist

PIECES = [
    Piece("00000.m4s", "a.mp4", 4.0, 1000),
    Piece("00001.m4s", "a.mp4", 4.5, 4500),
    Piece("00002.m4s", "a.mp4", 0.1, 900),
]


def test_a_media_playlist_lists_every_segment_and_ends() -> None:
    """A player must know that nothing more comes, and how long the longest piece is."""
    lines = media_playlist(PIECES).splitlines()
    assert lines[0] == "#EXTM3U"
    assert "#EXT-X-TARGETDURATION:5" in lines
    assert lines.count('#EXT-X-MAP:URI="a.mp4"') == 1
    assert lines[-2:] == ["00002.m4s", "#EXT-X-ENDLIST"]
    assert "#EXTINF:4.500000," in lines


def test_another_encoders_segment_is_announced() -> None:
    """Its header differs, and a decoder has to be set up anew."""
    text = media_playlist([PIECES[0], Piece("00001.m4s", "b.mp4", 4.0, 10)])
    assert text.index("#EXT-X-DISCONTINUITY") < text.index('URI="b.mp4"') < text.index("00001.m4s")


def test_the_master_playlist_says_what_a_player_chooses_by() -> None:
    """Peak rate without the stub at the end, which would lie upwards."""
    rendition = Rendition("720p", 1280, 720, 30000 / 1001, "avc1.64001f", PIECES)
    text = master_playlist([rendition], [Piece("0.m4s", "i.mp4", 4.0, 500)], "mp4a.40.2")
    assert "BANDWIDTH=9000," in text
    assert 'RESOLUTION=1280x720,FRAME-RATE=29.970,CODECS="avc1.64001f,mp4a.40.2",AUDIO="audio"' in text
    assert 'URI="audio/index.m3u8"' in text


def test_a_silent_video_has_no_audio_group() -> None:
    """A group that does not exist stops some players."""
    rendition = Rendition("720p", 1280, 720, 30, "avc1.64001f", PIECES)
    assert "AUDIO" not in master_playlist([rendition], [], "mp4a.40.2")
