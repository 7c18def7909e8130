package wasmhost

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// limitProcess limits this process for good. It is the compiler's, which opens no files
// but one and starts nothing.
//
// RLIMIT_AS would be the simple limit of memory, but Go reserves more than a gigabyte of
// address space at its start. RLIMIT_DATA counts what is writable.
func limitProcess(cpu time.Duration) error {
	limits := map[int]uint64{
		unix.RLIMIT_CPU:    uint64((cpu + time.Second - 1) / time.Second),
		unix.RLIMIT_DATA:   compileMemory,
		unix.RLIMIT_FSIZE:  compileFile,
		unix.RLIMIT_NOFILE: compileFiles,
		unix.RLIMIT_CORE:   0,
	}
	if raceDetector { // it has gigabytes of its own
		delete(limits, unix.RLIMIT_DATA)
	}
	for which, most := range limits {
		var now unix.Rlimit
		if err := unix.Getrlimit(which, &now); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		most = min(most, now.Max)
		if err := unix.Setrlimit(which, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	nice()
	closeInherited()
	return nil
}

// closeInherited closes descriptors beyond those of input, output and errors. Go passes none
// on, but what this process's parent was itself started with may be.
func closeInherited() {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, entry := range open {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd <= 2 {
			continue
		}
		// What Go opened itself would not be passed on, and stays.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
}

// nice lets others go first. In Linux each thread has a priority of its own, which those
// that it starts inherit. That it cannot be set, because it is lower already, is no harm.
func nice() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, compileNice)
		}
	}
}
