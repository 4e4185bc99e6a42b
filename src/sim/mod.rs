//! THE SIMULATED MODEL SERVICE: a Realtime server without a model, faithful down to the audio and the faults.
