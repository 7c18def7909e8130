//go:build race

package storetest

// raceEnabled tells that the race detector makes everything slower.
const raceEnabled = true
