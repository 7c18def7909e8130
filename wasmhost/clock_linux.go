package wasmhost

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// threadCPU returns the CPU time of the thread that asks, and which one that is. Both are
// asked for without the scheduler's knowledge, so that they are of one thread. It costs
// about half a microsecond.
func threadCPU() (cpu time.Duration, thread int) {
	var t unix.Timespec
	id, _, _ := unix.RawSyscall(unix.SYS_GETTID, 0, 0, 0)
	_, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_THREAD_CPUTIME_ID, uintptr(unsafe.Pointer(&t)), 0)
	if errno != 0 {
		return 0, 0 // as where there is no such clock
	}
	return time.Duration(t.Nano()), int(id)
}
