package meter_test

import (
	"time"

	"golang.org/x/sys/unix"
)

// threadTime is the processor's time of the thread. The goroutine must be locked to it.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}
