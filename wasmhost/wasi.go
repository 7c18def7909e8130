package wasmhost

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// wasi.go: the little of WASI preview 1 that language runtimes need to start: clocks,
// random octets, standard error, and an environment that the host writes. There is no
// file system and no network; asking for them gives an error number, as on a machine
// without. The clock and random octets come from the Host, like those of mg1.

const wasiModule = "wasi_snapshot_preview1"

// Error numbers of WASI preview 1.
const (
	wasiOK    = 0
	wasiBADF  = 8
	wasiFAULT = 21
	wasiINTR  = 27
	wasiINVAL = 28
	wasiNOSYS = 52
	wasiPERM  = 63
)

// Limits of one call.
const (
	maxIOVecs = 64
	maxPolls  = 64
)

// randomCost is how much more an octet from the system's random source costs than one that
// is copied.
const randomCost = 16

// What a piece of output costs in octets: so much, and what is kept of it at most.
const writeCost, writeMost = 512, 4 << 10

type wasiFunc struct {
	name            string
	params, results []api.ValueType
	do              func(in *instance, c call) uint64
}

func wasi(name string, params string, do func(*instance, call) uint64) wasiFunc {
	f := wasiFunc{name: name, results: []api.ValueType{i32}, do: do}
	for _, p := range params {
		if p == 'l' {
			f.params = append(f.params, i64)
		} else {
			f.params = append(f.params, i32)
		}
	}
	return f
}

// refuse answers functions of what is not there.
func refuse(errno uint64) func(*instance, call) uint64 {
	return func(*instance, call) uint64 { return errno }
}

// wasiFuncs is all of WASI that a filter may import. "i" is an i32 parameter, "l" an i64.
var wasiFuncs = []wasiFunc{
	wasi("args_get", "ii", refuse(wasiOK)),
	wasi("args_sizes_get", "ii", func(_ *instance, c call) uint64 { return c.put32(0, 0) | c.put32(1, 0) }),
	wasi("environ_get", "ii", wasiEnviron),
	wasi("environ_sizes_get", "ii", func(in *instance, c call) uint64 {
		n := 0
		for _, e := range in.filter.env {
			n += len(e) + 1
		}
		return c.put32(0, uint32(len(in.filter.env))) | c.put32(1, uint32(n))
	}),
	wasi("clock_res_get", "ii", func(_ *instance, c call) uint64 { return c.put64(1, 1000) }),
	wasi("clock_time_get", "ili", wasiClock),
	wasi("random_get", "ii", wasiRandom),
	wasi("fd_write", "iiii", wasiWrite),
	wasi("poll_oneoff", "iiii", wasiPoll),
	wasi("sched_yield", "", refuse(wasiOK)),
	{"proc_exit", []api.ValueType{i32}, nil, func(_ *instance, c call) uint64 {
		panic(sys.NewExitError(uint32(c.stack[0])))
	}},
	wasi("fd_fdstat_get", "ii", wasiFdstat),
	wasi("fd_fdstat_set_flags", "ii", refuse(wasiOK)),
	wasi("fd_prestat_get", "ii", refuse(wasiBADF)), // no directories
	wasi("fd_prestat_dir_name", "iii", refuse(wasiBADF)),
	wasi("fd_read", "iiii", refuse(wasiBADF)),
	wasi("fd_pread", "iiili", refuse(wasiBADF)),
	wasi("fd_pwrite", "iiili", refuse(wasiBADF)),
	wasi("fd_close", "i", refuse(wasiBADF)),
	wasi("fd_seek", "ilii", refuse(wasiBADF)),
	wasi("fd_tell", "ii", refuse(wasiBADF)),
	wasi("fd_sync", "i", refuse(wasiBADF)),
	wasi("fd_datasync", "i", refuse(wasiBADF)),
	wasi("fd_advise", "illi", refuse(wasiBADF)),
	wasi("fd_allocate", "ill", refuse(wasiBADF)),
	wasi("fd_filestat_get", "ii", refuse(wasiBADF)),
	wasi("fd_filestat_set_size", "il", refuse(wasiBADF)),
	wasi("fd_filestat_set_times", "illi", refuse(wasiBADF)),
	wasi("fd_fdstat_set_rights", "ill", refuse(wasiBADF)),
	wasi("fd_readdir", "iiili", refuse(wasiBADF)),
	wasi("fd_renumber", "ii", refuse(wasiBADF)),
	wasi("path_open", "iiiiillii", refuse(wasiPERM)),
	wasi("path_create_directory", "iii", refuse(wasiPERM)),
	wasi("path_filestat_get", "iiiii", refuse(wasiPERM)),
	wasi("path_filestat_set_times", "iiiilli", refuse(wasiPERM)),
	wasi("path_link", "iiiiiii", refuse(wasiPERM)),
	wasi("path_readlink", "iiiiii", refuse(wasiPERM)),
	wasi("path_remove_directory", "iii", refuse(wasiPERM)),
	wasi("path_rename", "iiiiii", refuse(wasiPERM)),
	wasi("path_symlink", "iiiii", refuse(wasiPERM)),
	wasi("path_unlink_file", "iii", refuse(wasiPERM)),
	wasi("proc_raise", "i", refuse(wasiNOSYS)),
	wasi("sock_accept", "iii", refuse(wasiBADF)),
	wasi("sock_recv", "iiiiii", refuse(wasiBADF)),
	wasi("sock_send", "iiiii", refuse(wasiBADF)),
	wasi("sock_shutdown", "ii", refuse(wasiBADF)),
}

func (r *Runtime) addWASI(ctx context.Context) error {
	b := r.wz.NewHostModuleBuilder(wasiModule)
	for _, f := range wasiFuncs {
		hasResult := len(f.results) > 0
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, stack []uint64) {
			in := caller(ctx)
			in.called()
			errno := f.do(in, call{in.memory, stack})
			if hasResult {
				stack[0] = errno
			}
		}), f.params, f.results).Export(f.name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("wasmhost: %s: %w", wasiModule, err)
	}
	return nil
}

// put32 writes v where argument i points.
func (c call) put32(i int, v uint32) uint64 {
	if !c.mem.WriteUint32Le(uint32(c.stack[i]), v) {
		return wasiFAULT
	}
	return wasiOK
}

func (c call) put64(i int, v uint64) uint64 {
	if !c.mem.WriteUint64Le(uint32(c.stack[i]), v) {
		return wasiFAULT
	}
	return wasiOK
}

func wasiEnviron(in *instance, c call) uint64 {
	ptrs, text := uint32(c.stack[0]), uint32(c.stack[1])
	for _, e := range in.filter.env {
		if !c.mem.WriteUint32Le(ptrs, text) || !c.mem.WriteString(text, e+"\x00") {
			return wasiFAULT
		}
		ptrs += 4
		text += uint32(len(e)) + 1
	}
	return wasiOK
}

func wasiClock(in *instance, c call) uint64 {
	switch uint32(c.stack[0]) {
	case 0:
		return c.put64(2, uint64(in.host.Now()))
	case 1, 2, 3: // monotonic, and the CPU clocks, for which it is near enough
		return c.put64(2, uint64(in.host.Mono()))
	}
	return wasiINVAL
}

func wasiRandom(in *instance, c call) uint64 {
	b, ok := c.mem.Read(uint32(c.stack[0]), uint32(c.stack[1]))
	if !ok {
		return wasiFAULT
	}
	for len(b) > 0 {
		n := min(len(b), abi.MaxRandom)
		if !in.charge(int64(n) * randomCost) {
			return wasiINTR // a large buffer takes longer than the guest has
		}
		if in.host.Random(b[:n]) < 0 {
			return wasiNOSYS
		}
		b = b[n:]
	}
	return wasiOK
}

// wasiWrite takes what the guest prints: a Go guest's panic, for example.
func wasiWrite(in *instance, c call) uint64 {
	if fd := uint32(c.stack[0]); fd != 1 && fd != 2 {
		return wasiBADF
	}
	vecs, count := uint32(c.stack[1]), uint32(c.stack[2])
	if count > maxIOVecs {
		return wasiINVAL
	}
	total := uint32(0)
	for i := range count {
		ptr, ok1 := c.mem.ReadUint32Le(vecs + 8*i)
		n, ok2 := c.mem.ReadUint32Le(vecs + 8*i + 4)
		if !ok1 || !ok2 {
			return wasiFAULT
		}
		b, ok := c.mem.Read(ptr, n)
		if !ok {
			return wasiFAULT
		}
		if !in.charge(writeCost + min(int64(n), writeMost)) {
			return wasiINTR
		}
		in.host.Stderr(b)
		total += n
	}
	return c.put32(3, total)
}

// wasiFdstat says that standard input, output and error are character devices.
func wasiFdstat(_ *instance, c call) uint64 {
	if uint32(c.stack[0]) > 2 {
		return wasiBADF
	}
	b, ok := c.mem.Read(uint32(c.stack[1]), 24)
	if !ok {
		return wasiFAULT
	}
	clear(b)
	b[0] = 2
	return wasiOK
}

// Layout of WASI's subscription and event.
const (
	subscriptionSize = 48
	eventSize        = 32
	eventClock       = 0
)

// wasiPoll does not wait: the time that a guest sleeps is time that somebody's session
// waits. Clocks are due at once, and a guest that looks at the time and sleeps again uses up
// its CPU time. Other subscriptions are ready with an error.
func wasiPoll(_ *instance, c call) uint64 {
	count := uint32(c.stack[2])
	if count == 0 || count > maxPolls {
		return wasiINVAL
	}
	subs, ok1 := c.mem.Read(uint32(c.stack[0]), count*subscriptionSize)
	events, ok2 := c.mem.Read(uint32(c.stack[1]), count*eventSize)
	if !ok1 || !ok2 {
		return wasiFAULT
	}
	for i := range count {
		sub, ev := subs[i*subscriptionSize:][:subscriptionSize], events[i*eventSize:][:eventSize]
		var data [8]byte
		copy(data[:], sub) // the guest may have them overlap
		kind := sub[8]
		clear(ev)
		copy(ev, data[:])
		ev[10] = kind
		if kind != eventClock {
			binary.LittleEndian.PutUint16(ev[8:], wasiBADF)
		}
	}
	return c.put32(3, count)
}
