//go:build race

package wasmhost

// raceDetector: this program was built with it, so it is slow and takes much memory.
const raceDetector = true

// slowness is how much longer compiling takes with it.
const slowness = 10
