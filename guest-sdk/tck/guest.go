package tck

import (
	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// guest.go: a guest that follows scripts, without any SDK. It is made from the table of
// imports and so knows all of them.

// Where the guest keeps what. Its memory is a MiB and cannot grow.
const (
	mailboxAt   = 0x10000
	mailboxSize = 0x20000
	bufferAt    = 0x30000 // of the step
	answerAt    = 0x31000 // head of the answer
	lineAt      = 0x32000 // the line: prefix, and hexadecimal
	configAt    = 0x40000
	configSize  = 0x80000
	scriptAt    = 0xc0000
	pages       = 16
)

// Short forms of instructions. Offsets of loads and stores are 0 unless they say so.
func local(n byte) wasmtest.Code     { return wasmtest.Op(0x20, n) }
func set(n byte) wasmtest.Code       { return wasmtest.Op(0x21, n) }
func load8(off byte) wasmtest.Code   { return wasmtest.Op(0x2d, 0, off) }
func load16(off byte) wasmtest.Code  { return wasmtest.Op(0x2f, 0, off) }
func load32(off byte) wasmtest.Code  { return wasmtest.Op(0x28, 0, off) }
func load64(off byte) wasmtest.Code  { return wasmtest.Op(0x29, 0, off) }
func store8(off byte) wasmtest.Code  { return wasmtest.Op(0x3a, 0, off) }
func store16(off byte) wasmtest.Code { return wasmtest.Op(0x3b, 0, off) }
func store64(off byte) wasmtest.Code { return wasmtest.Op(0x37, 0, off) }
func add(n int32) wasmtest.Code      { return wasmtest.Seq(wasmtest.I32(n), wasmtest.Op(0x6a)) }
func when(code ...wasmtest.Code) wasmtest.Code { // if the i32 on the stack is not 0
	return wasmtest.Seq(wasmtest.Op(0x04, 0x40), wasmtest.Seq(code...), wasmtest.Op(0x0b))
}

// turns repeats code until it says leave.
func turns(code ...wasmtest.Code) wasmtest.Code {
	return wasmtest.Seq(wasmtest.Op(0x02, 0x40, 0x03, 0x40), wasmtest.Seq(code...), wasmtest.Op(0x0c, 0, 0x0b, 0x0b))
}

// leave ends the turns around it if the i32 on the stack is not 0.
func leave() wasmtest.Code { return wasmtest.Op(0x0d, 1) }

var (
	plus  = wasmtest.Op(0x6a)
	equal = wasmtest.Op(0x46)
	ret   = wasmtest.Op(0x0f)
	wrap  = wasmtest.Op(0xa7)
	widen = wasmtest.Op(0xac)
)

// Guest returns the module of a guest that follows scripts. It subscribes to every hook of
// package abi.
func Guest() []byte {
	return wasmtest.Guest{
		Hooks:   abi.InSession,
		Memory:  wasmtest.Limits{Min: pages, Max: new(uint32(pages))},
		Mailbox: mailboxAt<<32 | mailboxSize,
		Data:    map[uint32]string{lineAt: linePrefix},
		Init:    wasmtest.Seq(wasmtest.Call("unhex"), wasmtest.Call("run", wasmtest.I32(0)), wasmtest.Drop()),
		Else:    wasmtest.Call("run", local(0)),
		Edit:    addInterpreter,
	}.Bytes()
}

// addInterpreter adds the functions that follow a script.
func addInterpreter(m *wasmtest.Module) {
	m.Func("unhex", ">", "iii", unhex()...)
	m.Func("nibble", "i>i", "", local(0), wasmtest.I32(15), wasmtest.Op(0x71), local(0), wasmtest.I32(6), wasmtest.Op(0x76), wasmtest.I32(9), wasmtest.Op(0x6c), plus)
	m.Func("hex", "iii>", "", hexes()...)
	m.Func("digit", "i>i", "", local(0), wasmtest.I32('0'), plus, local(0), wasmtest.I32(9), wasmtest.Op(0x4a), wasmtest.I32('a'-'9'-1), wasmtest.Op(0x6c), plus)
	m.Func("run", "i>l", "il", run()...)
	m.Func("answer", "iili>", "", answer()...)
	var dispatch wasmtest.Code
	for _, imp := range abi.Imports() {
		m.Import(abi.Module, imp.Name, signature(imp))
		m.Func("do "+imp.Name, "i>", "iil", do(imp))
		dispatch = wasmtest.Seq(dispatch, isImport(imp.Name), when(wasmtest.Call("do "+imp.Name, local(0)), ret))
	}
	copyFrame := wasmtest.Seq(wasmtest.I32(bufferAt), wasmtest.I32(mailboxAt), local(0), load32(stepHead), wasmtest.Op(0xfc, 10, 0, 0))
	m.Func("step", "i>", "", dispatch,
		isImport(StepFrame), when(copyFrame, wasmtest.Call("answer", local(0), wasmtest.I32(0), wasmtest.I64(0), wasmtest.Seq(local(0), load32(stepHead))), ret),
		wasmtest.Call("answer", local(0), wasmtest.I32(flagUnasked), wasmtest.I64(0), wasmtest.I32(0)))
}

func isImport(name string) wasmtest.Code {
	return wasmtest.Seq(local(0), load32(4), wasmtest.I32(int32(id(name))), equal)
}

// signature writes an import's type for wasmtest.
func signature(imp abi.Import) string {
	letter := map[abi.Type]string{abi.I32: "i", abi.I64: "l"}
	s := ""
	for _, p := range imp.Params {
		s += letter[p.Type]
	}
	return s + ">" + letter[imp.Result]
}

// unhex reads the configuration and decodes the script. Locals: source, target, digit.
func unhex() []wasmtest.Code {
	digit := func(off byte) wasmtest.Code { return wasmtest.Call("nibble", local(0), load8(off)) }
	return []wasmtest.Code{
		wasmtest.Call(abi.Module+".config", wasmtest.I32(0), wasmtest.I32(configAt), wasmtest.I32(configSize)), wasmtest.Drop(),
		wasmtest.I32(configAt + int32(len(configHead))), set(0),
		wasmtest.I32(scriptAt), set(1),
		turns(
			local(0), load8(0), wasmtest.I32('"'), equal, leave(),
			local(1), digit(0), wasmtest.I32(4), wasmtest.Op(0x74), digit(1), plus, store8(0),
			local(0), add(2), set(0),
			local(1), add(1), set(1),
		),
	}
}

// hexes(to, from, n) writes n octets as text.
func hexes() []wasmtest.Code {
	return []wasmtest.Code{turns(
		local(2), wasmtest.Op(0x45), leave(), // i32.eqz
		local(0), wasmtest.Call("digit", local(1), load8(0), wasmtest.I32(4), wasmtest.Op(0x76)), store8(0),
		local(0), wasmtest.Call("digit", local(1), load8(0), wasmtest.I32(15), wasmtest.Op(0x71)), store8(1),
		local(0), add(2), set(0),
		local(1), add(1), set(1),
		local(2), add(-1), set(2),
	)}
}

// run(hook) does the steps of a hook and returns the verdict. Locals: step, verdict.
func run() []wasmtest.Code {
	mine := wasmtest.Seq(local(1), load8(0), local(0), equal)
	verdict := wasmtest.Seq(local(1), load32(4), wasmtest.I32(int32(id(StepVerdict))), equal)
	return []wasmtest.Code{
		wasmtest.I32(scriptAt), set(1),
		turns(
			local(1), load8(0), wasmtest.I32(endOfScript), equal, leave(),
			mine, when(
				verdict, wasmtest.Op(0x04, 0x40), local(1), load64(stepHead), set(2),
				wasmtest.Op(0x05), wasmtest.Call("step", local(1)), wasmtest.Op(0x0b)),
			local(1), local(1), load32(8), plus, add(stepHead), set(1),
		),
		local(2),
	}
}

// answer(step, status, result, room) logs what came of a step.
func answer() []wasmtest.Code {
	prefix := int32(len(linePrefix))
	return []wasmtest.Code{
		wasmtest.I32(answerAt), local(0), load16(2), store16(0),
		wasmtest.I32(answerAt), local(1), store16(2),
		wasmtest.I32(answerAt), local(2), store64(4),
		wasmtest.Call("hex", wasmtest.I32(lineAt+prefix), wasmtest.I32(answerAt), wasmtest.I32(answerHead)),
		wasmtest.Call("hex", wasmtest.I32(lineAt+prefix+2*answerHead), wasmtest.I32(bufferAt), local(3)),
		wasmtest.Call(abi.Module+".log", wasmtest.I32(int32(abi.LevelInfo)), wasmtest.I32(lineAt),
			local(3), wasmtest.I32(1), wasmtest.Op(0x74), add(prefix+2*answerHead)), wasmtest.Drop(),
	}
}

// do is the function that calls an import for a step. Locals: where its next argument is,
// the room of the buffer, the result.
func do(imp abi.Import) wasmtest.Code {
	result := wasmtest.Code{}
	if imp.Result == abi.I32 {
		result = widen
	}
	fill := wasmtest.Seq(wasmtest.I32(bufferAt), wasmtest.I32(filler), wasmtest.I32(MaxRoom), wasmtest.Op(0xfc, 11, 0))
	return wasmtest.Seq(
		local(0), add(stepHead), set(1),
		local(0), load8(1), when(wasmtest.Call(abi.Module+"."+imp.Name, rawParams(imp)), wasmtest.Drop(), ret),
		fill,
		wasmtest.Call(abi.Module+"."+imp.Name, params(imp)), result, set(3),
		wasmtest.Call("answer", local(0), wasmtest.I32(0), local(3), local(2)))
}

// params puts an import's parameters on the stack.
func params(imp abi.Import) (code wasmtest.Code) {
	for _, a := range argsOf(imp) {
		next := wasmtest.Seq(local(1), add(4), set(1))
		switch a.kind {
		case number:
			code = wasmtest.Seq(code, rawParam(imp.Params[a.param]))
		case octets:
			code = wasmtest.Seq(code, local(1), add(4), local(1), load32(0), local(1), local(1), load32(0), plus, set(1), next)
		case buffer:
			code = wasmtest.Seq(code, wasmtest.I32(bufferAt), local(1), load32(0), wasmtest.Op(0x22, 2), next)
		}
	}
	return code
}

func rawParams(imp abi.Import) (code wasmtest.Code) {
	for _, p := range imp.Params {
		code = wasmtest.Seq(code, rawParam(p))
	}
	return code
}

// rawParam puts the i64 that comes next on the stack, as what p is.
func rawParam(p abi.Param) wasmtest.Code {
	code := wasmtest.Seq(local(1), load64(0))
	if p.Type == abi.I32 {
		code = wasmtest.Seq(code, wrap)
	}
	return wasmtest.Seq(code, local(1), add(8), set(1))
}
