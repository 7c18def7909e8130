//go:build race

package meter_test

// raceEnabled tells that the race detector makes everything slower.
const raceEnabled = true
