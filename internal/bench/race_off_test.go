//go:build !race

package bench

// raceEnabled tells that the race detector makes everything slower.
const raceEnabled = false
