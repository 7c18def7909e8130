//go:build !race

package main

// raceEnabled tells that the race detector makes everything slower.
const raceEnabled = false
