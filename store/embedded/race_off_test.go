//go:build !race

package embedded

// raceEnabled tells that the race detector makes everything slower and larger.
const raceEnabled = false
