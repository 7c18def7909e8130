//go:build !linux

package meter_test

import "time"

var began = time.Now()

// threadTime is the time that passed, where the thread's own is not to be had.
func threadTime() time.Duration { return time.Since(began) }
