//! OUR OWN CLIENT of `voxrelay.v1`: connect, stream, playback clock. Used by `say` and by the tests.
