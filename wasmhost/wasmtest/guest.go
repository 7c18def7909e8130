package wasmtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// guest.go: filters, described by what they do.

// Code is a stretch of instructions.
type Code []instr

// instr is raw octets, or a call of a function by its name.
type instr struct {
	raw  []byte
	call string
}

// Seq joins code.
func Seq(code ...Code) Code { return slices.Concat(code...) }

// Op is raw instructions.
func Op(raw ...byte) Code { return Code{{raw: raw}} }

// I32 puts a constant on the stack.
func I32(v int32) Code { return Op(append([]byte{0x41}, Int(int64(v))...)...) }

// I64 puts a constant on the stack.
func I64(v int64) Code { return Op(append([]byte{0x42}, Int(v)...)...) }

// Drop takes a value off the stack.
func Drop() Code { return Op(0x1a) }

// Call calls a function: one of the module by its name, or an import as "module.name".
// Of a [Guest], imports of mg1 and WASI need no declaration.
func Call(name string, args ...Code) Code { return append(Seq(args...), instr{call: name}) }

// Verdict leaves a verdict.
func Verdict(v abi.Verdict) Code { return I64(int64(v)) }

// Say leaves the verdict that consists of an action alone.
func Say(a abi.Action) Code { return Verdict(abi.NewVerdict(a, 0, 0, 0, 0, false)) }

// Trap stops with a trap. It may stand where a verdict is due.
func Trap() Code { return Op(0x00) }

// Loop does not come back. It may stand where a verdict is due.
func Loop() Code { return Op(0x03, 0x40, 0x0c, 0x00, 0x0b, 0x00) }

// Recurse calls itself until the stack ends, without a loop. It leaves 0.
func Recurse() Code { return Call("recurse", I64(0)) }

// Work turns a loop n times and leaves nothing.
func Work(n int64) Code { return Call("work", I64(n)) }

// Counter leaves a tempfail with code 450 + the number of Counters that ran in this
// instance before. The count is a global, which is what must not outlive a session.
func Counter() Code {
	return Seq(Verdict(abi.NewVerdict(abi.ActTempfail, 450, 0, 0, 0, false)),
		Op(0x23, 0), I64(8), Op(0x86, 0x7c), // + counter<<8
		Op(0x23, 0), I64(1), Op(0x7c, 0x24, 0)) // counter++
}

// Fail leaves the verdict of a guest that failed, with the i32 that code leaves as its
// number: the way of a test to see what an import returned.
func Fail(code Code) Code {
	return Seq(code, Op(0xad), I64(-1<<63), Op(0x84)) // i64.extend_i32_u, i64.or
}

// Imports calls an import of mg1 by its name alone and leaves its result as an i32.
func Imports(name string, args ...int64) Code {
	var code Code
	imp := importOf(name)
	for i, a := range args {
		if imp.Params[i].Type == abi.I64 {
			code = Seq(code, I64(a))
		} else {
			code = Seq(code, I32(int32(a)))
		}
	}
	code = Call(abi.Module+"."+name, code)
	if imp.Result == abi.I64 {
		code = Seq(code, Op(0xa7)) // i32.wrap_i64
	}
	return code
}

func importOf(name string) abi.Import {
	for _, imp := range abi.Imports() {
		if imp.Name == name {
			return imp
		}
	}
	panic("wasmtest: no import " + name)
}

// Where a Guest keeps things in its memory.
const (
	MailboxAt = 4 << 10  // its mailbox, abi.MinMailbox octets, unless Guest.Mailbox says otherwise
	FreeAt    = 32 << 10 // from here to the end of the first page nothing is used
)

// Guest is a filter. The zero Guest subscribes to all hooks and has no objection.
type Guest struct {
	// Hooks are those it subscribes to. Default all but chunk, which needs a larger mailbox.
	Hooks abi.Hooks
	// On is what it does at a hook: code that leaves the verdict, an i64. At others it
	// says continue.
	On map[abi.Hook]Code
	// Else is what it does at hooks that are not in On. Default continue.
	Else Code
	// Init runs in mg1_init before it subscribes. It leaves nothing.
	Init Code
	// Initialize is the code of _initialize, and Start that of the start function. They
	// leave nothing. Default: the module has none.
	Initialize, Start Code
	// Mailbox is what mg1_init returns. Default: abi.MinMailbox octets at MailboxAt.
	Mailbox int64
	// Memory is its memory in pages. Default 1, without a maximum.
	Memory Limits
	// Data is what is in memory.
	Data map[uint32]string
	// Edit, if not nil, may change the module before it is encoded.
	Edit func(m *Module)
}

// Bytes returns the guest's module.
func (g Guest) Bytes() []byte {
	if g.Hooks == 0 {
		g.Hooks = abi.InSession &^ (1 << abi.HookChunk)
	}
	if g.Mailbox == 0 {
		g.Mailbox = MailboxAt<<32 | abi.MinMailbox
	}
	if g.Memory.Min == 0 {
		g.Memory.Min = 1
	}
	if g.Else == nil {
		g.Else = Say(abi.ActContinue)
	}
	m := &Module{Memory: &g.Memory, Globals: []Global{{Mutable: true}}, Names: true}
	m.Exports = []Export{{Name: abi.ExportMemory, Kind: KindMemory}}
	m.Func(abi.ExportInit, "i>l", "", g.Init, Imports("subscribe", int64(g.Hooks)), Drop(), I64(g.Mailbox))
	m.Func(abi.ExportHook, "ii>l", "", g.dispatch())
	if g.Initialize != nil {
		m.Func(abi.ExportInitialize, ">", "", g.Initialize)
		m.ExportFunc(abi.ExportInitialize)
	}
	if g.Start != nil {
		m.Func("start", ">", "", g.Start)
		m.Start = "start"
	}
	// recurse(n) = recurse(n+1) + n, so that the call is not the last thing it does.
	m.Func("recurse", "l>l", "", Op(0x20, 0), I64(1), Op(0x7c), Call("recurse"), Op(0x20, 0, 0x7c))
	// work(n): loop; n -= 1; br_if 0 while n > 0.
	m.Func("work", "l>", "", Op(0x03, 0x40, 0x20, 0), I64(1), Op(0x7d, 0x22, 0), I64(0), Op(0x55, 0x0d, 0, 0x0b))
	m.ExportFunc(abi.ExportInit)
	m.ExportFunc(abi.ExportHook)
	for _, off := range slices.Sorted(maps.Keys(g.Data)) {
		m.Data = append(m.Data, Segment{off, g.Data[off]})
	}
	m.importUsed()
	if g.Edit != nil {
		g.Edit(m)
	}
	return m.Bytes()
}

// dispatch is a chain of "if hook == n { return code }".
func (g Guest) dispatch() Code {
	var code Code
	for _, hook := range slices.Sorted(maps.Keys(g.On)) {
		code = Seq(code, Op(0x20, 0), I32(int32(hook)), Op(0x46, 0x04, 0x40), g.On[hook], Op(0x0f, 0x0b))
	}
	return Seq(code, g.Else)
}

// importUsed declares the imports that code calls.
func (m *Module) importUsed() {
	for _, f := range m.funcs {
		for _, in := range f.code {
			module, name, ok := strings.Cut(in.call, ".")
			switch {
			case !ok:
			case module == abi.Module:
				m.Import(module, name, signature(importOf(name)))
			case wasiSignatures[name] != "":
				m.Import(module, name, wasiSignatures[name])
			default:
				panic(fmt.Sprintf("wasmtest: call of %s, which is not declared", in.call))
			}
		}
	}
}

// WASI is the module that Call names for functions of WASI.
const WASI = "wasi_snapshot_preview1"

// wasiSignatures are those of WASI that tests call.
var wasiSignatures = map[string]string{
	"clock_time_get": "ili>i", "random_get": "ii>i", "fd_write": "iiii>i", "poll_oneoff": "iiii>i",
	"proc_exit": "i>", "environ_get": "ii>i", "environ_sizes_get": "ii>i", "args_sizes_get": "ii>i",
	"fd_fdstat_get": "ii>i", "path_open": "iiiiillii>i", "fd_read": "iiii>i", "clock_res_get": "ii>i",
	"sched_yield": ">i",
}

// signature writes an import's type for Module.Import.
func signature(imp abi.Import) string {
	letter := map[abi.Type]string{abi.I32: "i", abi.I64: "l"}
	s := ""
	for _, p := range imp.Params {
		s += letter[p.Type]
	}
	return s + ">" + letter[imp.Result]
}
