package wasmhost_test

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// Where the guest of TestOvershoot has its texts.
const (
	longTextAt = 0x10000  // 1 MiB
	addressAt  = 0x300000 // of 500 octets
	requestAt  = 0x340000 // of http, 256 KiB
	listAt     = 0x200000 // of match_set
)

// dear are calls of the host that take it long, each with the arguments of a guest that means
// harm. None takes much of a guest's fuel.
var dear = []struct {
	name string
	call wasmtest.Code
}{
	{"every recipient", wasmtest.Imports("get", int64(abi.FieldRcpts), -1, 0, 0)},
	{"an octet of a large header", wasmtest.Imports("part_read", 0, int64(abi.PartHeader), 0, 0, 1)},
	{"its length", wasmtest.Imports("part_len", 0, int64(abi.PartHeader))},
	{"a request that is too large", wasmtest.Imports("http", longTextAt, 1<<20, 0, 0)},
	{"a request to nowhere", wasmtest.Imports("http", requestAt, abi.MaxHTTPRequest, 0, 0)},
	{"a request to nowhere beside it", wasmtest.Imports("submit", int64(abi.OpHTTP), requestAt, abi.MaxHTTPRequest)},
	{"a notification to nobody", wasmtest.Imports("dsn", longTextAt, abi.MaxDSN)},
	{"many patterns in nothing", wasmtest.Imports("match", 0, int64(abi.ScanBody), 1<<40, 0, 0)},
	{"a body of many pieces", wasmtest.Seq(
		wasmtest.Call("mg1.body_splice", wasmtest.Op(0x23, 0), wasmtest.I64(0xffff), wasmtest.Op(0x83), wasmtest.I64(1), wasmtest.I32(longTextAt), wasmtest.I32(2)),
		wasmtest.Drop(), wasmtest.Imports("body_read", 1<<20, 0, 1))},
	{"a long address", wasmtest.Imports("env_from", addressAt, 512)},
	{"session values", wasmtest.Imports("sess_set", longTextAt, 10, longTextAt, abi.MaxSession-10)},
	{"random octets", wasmtest.Imports("random", longTextAt, abi.MaxRandom)},
	{"a reply", wasmtest.Imports("reply", longTextAt, abi.MaxReply)},
}

// However dear the calls of the host are that a guest makes in a loop, it is stopped soon
// after its time: its first slice too is of time, and not of fuel alone.
func TestOvershoot(t *testing.T) {
	const cpu = 5 * time.Millisecond
	most := cpu + 60*time.Millisecond // a tick costs a goroutine that is locked to its thread much
	if wasmhost.RaceDetector {
		most *= 10
	}
	nowhere := binary.LittleEndian.AppendUint32([]byte("\x03\x00\x00\x00GET\x09\x00\x00\x00http://a/"), abi.MaxHTTPRequest-24)
	patterns := ""
	for i := range 5000 {
		patterns += "\x04\x00\x00\x00" + fmt.Sprintf("%04d", i)
	}
	rt := newRuntime(t)
	tx := transaction(message("X: " + strings.Repeat("long header\r\n ", 40_000) + "\r\n\r\n" + strings.Repeat("hello\r\n", 20_000)))
	for i := range 2000 {
		tx.Rcpts = append(tx.Rcpts, policy.Recipient{})
		tx.Rcpts[len(tx.Rcpts)-1].Path = path(fmt.Sprintf("user%d@example.com", i))
	}
	runtime.LockOSThread() // whose clock is read
	defer runtime.UnlockOSThread()
	for _, tt := range dear {
		// do { counter++; call } while (true)
		loop := wasmtest.Seq(wasmtest.Op(0x03, 0x40, 0x23, 0), wasmtest.I64(16), wasmtest.Op(0x7c, 0x24, 0),
			tt.call, wasmtest.Drop(), wasmtest.Op(0x0c, 0, 0x0b, 0x00))
		g := wasmtest.Guest{Memory: wasmtest.Limits{Min: 64}, On: map[abi.Hook]wasmtest.Code{abi.HookMessage: loop}, Data: map[uint32]string{
			longTextAt: strings.Repeat("x", 1<<20), addressAt: strings.Repeat("a", 500) + "@example.com", requestAt: string(nowhere), listAt: patterns,
		}}
		if strings.HasPrefix(tt.name, "many patterns") {
			g.Init = wasmtest.Seq(wasmtest.Imports("match_set", 0, listAt, int64(len(patterns))), wasmtest.Drop())
		}
		m, err := rt.Load(t.Context(), tt.name, g.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		f, err := m.Filter(t.Context(), wasmhost.FilterOptions{
			Grants: guest.Everything(), Services: silence(),
			Limits: wasmhost.Limits{CPU: cpu, CPUMessage: cpu, CPUPerMiB: 1, Wall: time.Minute},
		})
		if err != nil {
			t.Fatal(err)
		}
		d := talk(t, f)
		d.tx = tx
		from := wasmhost.ThreadCPU()
		got := d.at(policy.StageMessage)
		if took := wasmhost.ThreadCPU() - from; took > most {
			t.Errorf("%s: it ran for %v, with %v to run", tt.name, took, cpu)
		}
		if wasmhost.Cause(got.Err) != wasmhost.CauseCPU {
			t.Errorf("%s: got %v, want that it exceeds its CPU time", tt.name, got.Err)
		}
		d.close()
		f.Close()
	}
}

// A guest cannot have more CPU time than it is charged for by instructions that are dear: each
// of these stores takes a page of memory from the system.
func TestDearInstructions(t *testing.T) {
	const calls = 64
	touch := wasmtest.Seq(wasmtest.I32(0), wasmtest.Op(0x21, 2, 0x03, 0x40), // do
		wasmtest.Op(0x20, 2), wasmtest.I32(1), wasmtest.Op(0x3a, 0, 0), // memory[i] = 1
		wasmtest.Op(0x20, 2), wasmtest.I32(4096), wasmtest.Op(0x6a, 0x22, 2), // i += 4096
		wasmtest.I32(8<<20), wasmtest.Op(0x49, 0x0d, 0, 0x0b)) // while (i < 8 MiB)
	g := wasmtest.Guest{Memory: wasmtest.Limits{Min: 128}, Edit: func(m *wasmtest.Module) {
		m.Func("touch", "ii>l", "i", touch, wasmtest.Say(abi.ActContinue))
	}, On: map[abi.Hook]wasmtest.Code{abi.HookMail: wasmtest.Call("touch", wasmtest.I32(0), wasmtest.I32(0))}}
	f := load(t, g.Bytes(), wasmhost.FilterOptions{Instance: wasmhost.InstanceHook, Limits: wasmhost.Limits{CPU: 500 * time.Millisecond, CPUSession: 5 * time.Second}})
	d := talk(t, f)
	defer d.close()
	runtime.LockOSThread() // whose clock is read
	defer runtime.UnlockOSThread()
	var used time.Duration
	for range calls {
		from := wasmhost.ThreadCPU()
		if got := d.at(policy.StageMail); got.Err != nil {
			t.Fatal(got.Err)
		}
		used += wasmhost.ThreadCPU() - from
	}
	if charged := f.Stats().CPU[policy.StageMail]; charged < used/4 {
		t.Errorf("it ran for %v, and was charged %v", used, charged)
	}
}
