//go:build !race

package wasmhost

// raceDetector; see the other file.
const raceDetector = false

const slowness = 1
