package wasmhost

import (
	"os"
	"os/signal"
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
	over := make(chan os.Signal, 1)
	signal.Notify(over, unix.SIGXCPU)
	go func() {
		<-over
		os.Exit(statusLate)
	}()
	seconds := uint64((cpu + time.Second - 1) / time.Second)
	limits := map[int]unix.Rlimit{
		unix.RLIMIT_CPU:    {Cur: seconds, Max: seconds + 1}, // SIGXCPU, SIGKILL
		unix.RLIMIT_DATA:   {Cur: compileMemory, Max: compileMemory},
		unix.RLIMIT_FSIZE:  {Cur: compileFile, Max: compileFile},
		unix.RLIMIT_NOFILE: {Cur: compileFiles, Max: compileFiles},
		unix.RLIMIT_CORE:   {Cur: 0, Max: 0},
	}
	if raceDetector { // it has gigabytes of its own
		delete(limits, unix.RLIMIT_DATA)
	}
	for which, most := range limits {
		var now unix.Rlimit
		if err := unix.Getrlimit(which, &now); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		most.Cur, most.Max = min(most.Cur, now.Max), min(most.Max, now.Max)
		if err := unix.Setrlimit(which, &most); err != nil {
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
