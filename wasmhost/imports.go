package wasmhost

import (
	"context"
	"errors"
	"fmt"

	"github.com/tetratelabs/wazero/api"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy/guest"
)

// imports.go: the functions of mg1. Each takes its arguments from the stack, finds the
// memory they speak of, and calls the Host.

// call is a guest's call of an import: the memory, and arguments on the stack in the
// order of the table in package abi.
type call struct {
	mem   api.Memory
	stack []uint64
}

var errPointer = errors.New("pointer outside of the guest's memory")

// buf returns the memory that arguments i (pointer) and i+1 (length) name. A range that is
// not the guest's is a trap: wazero turns the panic into the error of the guest's call.
func (c call) buf(i int) []byte {
	b, ok := c.mem.Read(uint32(c.stack[i]), uint32(c.stack[i+1]))
	if !ok {
		panic(errPointer)
	}
	return b
}

func (c call) i32(i int) int32 { return int32(c.stack[i]) }
func (c call) i64(i int) int64 { return int64(c.stack[i]) }

// functions are the imports by name. A test compares them with abi.Imports.
var functions = map[string]func(h guest.Host, c call) int64{
	"subscribe":   func(h guest.Host, c call) int64 { return int64(h.Subscribe(c.stack[0])) },
	"features":    func(h guest.Host, c call) int64 { return int64(h.Features()) },
	"get":         func(h guest.Host, c call) int64 { return int64(h.Get(c.i32(0), c.i32(1), c.buf(2))) },
	"config":      func(h guest.Host, c call) int64 { return int64(h.Config(c.i32(0), c.buf(1))) },
	"reply":       func(h guest.Host, c call) int64 { return int64(h.Reply(c.buf(0))) },
	"tag":         func(h guest.Host, c call) int64 { return int64(h.Tag(c.buf(0), c.buf(2))) },
	"score":       func(h guest.Host, c call) int64 { return int64(h.Score(c.buf(0), c.i64(2))) },
	"log":         func(h guest.Host, c call) int64 { return int64(h.Log(c.i32(0), c.buf(1))) },
	"log_enabled": func(h guest.Host, c call) int64 { return int64(h.LogEnabled(c.i32(0))) },
	"metric":      func(h guest.Host, c call) int64 { return int64(h.Metric(c.buf(0), c.i32(2))) },
	"metric_add":  func(h guest.Host, c call) int64 { return int64(h.MetricAdd(c.i32(0), c.i64(1))) },
	"now":         func(h guest.Host, c call) int64 { return h.Now() },
	"mono":        func(h guest.Host, c call) int64 { return h.Mono() },
	"random":      func(h guest.Host, c call) int64 { return int64(h.Random(c.buf(0))) },
	"sess_get":    func(h guest.Host, c call) int64 { return int64(h.SessGet(c.buf(0), c.buf(2))) },
	"sess_set":    func(h guest.Host, c call) int64 { return int64(h.SessSet(c.buf(0), c.buf(2))) },
	"hdr_count":   func(h guest.Host, c call) int64 { return int64(h.HdrCount()) },
	"hdr_get":     func(h guest.Host, c call) int64 { return h.HdrGet(c.i32(0), c.buf(1)) },
	"hdr_find":    func(h guest.Host, c call) int64 { return int64(h.HdrFind(c.buf(0), c.i32(2))) },
	"hdr_raw":     func(h guest.Host, c call) int64 { return int64(h.HdrRaw(c.i32(0), c.buf(1))) },
	"hdr_add":     func(h guest.Host, c call) int64 { return int64(h.HdrAdd(c.i32(0), c.buf(1), c.buf(3))) },
	"hdr_set":     func(h guest.Host, c call) int64 { return int64(h.HdrSet(c.i32(0), c.buf(1))) },
	"hdr_del":     func(h guest.Host, c call) int64 { return int64(h.HdrDel(c.i32(0))) },
	"body_len":    func(h guest.Host, c call) int64 { return h.BodyLen() },
	"body_read":   func(h guest.Host, c call) int64 { return int64(h.BodyRead(c.i64(0), c.buf(1))) },
	"body_splice": func(h guest.Host, c call) int64 { return int64(h.BodySplice(c.i64(0), c.i64(1), c.buf(2))) },
	"body_new":    func(h guest.Host, c call) int64 { return int64(h.BodyNew()) },
	"body_write":  func(h guest.Host, c call) int64 { return int64(h.BodyWrite(c.buf(0))) },
	"body_commit": func(h guest.Host, c call) int64 { return int64(h.BodyCommit()) },
	"part_count":  func(h guest.Host, c call) int64 { return int64(h.PartCount()) },
	"part_info":   func(h guest.Host, c call) int64 { return int64(h.PartInfo(c.i32(0), c.buf(1))) },
	"part_len":    func(h guest.Host, c call) int64 { return h.PartLen(c.i32(0), c.i32(1)) },
	"part_read":   func(h guest.Host, c call) int64 { return int64(h.PartRead(c.i32(0), c.i32(1), c.i64(2), c.buf(3))) },
	"match_set":   func(h guest.Host, c call) int64 { return int64(h.MatchSet(c.i32(0), c.buf(1))) },
	"match":       func(h guest.Host, c call) int64 { return int64(h.Match(c.i32(0), c.i32(1), c.i64(2), c.buf(3))) },
	"hash":        func(h guest.Host, c call) int64 { return int64(h.Hash(c.i32(0), c.i32(1), c.buf(2))) },
	"env_from":    func(h guest.Host, c call) int64 { return int64(h.EnvFrom(c.buf(0))) },
	"rcpt_count":  func(h guest.Host, c call) int64 { return int64(h.RcptCount()) },
	"rcpt_get":    func(h guest.Host, c call) int64 { return int64(h.RcptGet(c.i32(0), c.buf(1))) },
	"rcpt_add":    func(h guest.Host, c call) int64 { return int64(h.RcptAdd(c.buf(0))) },
	"rcpt_set":    func(h guest.Host, c call) int64 { return int64(h.RcptSet(c.i32(0), c.buf(1))) },
	"rcpt_del":    func(h guest.Host, c call) int64 { return int64(h.RcptDel(c.i32(0))) },

	"rcpt_verdict": func(h guest.Host, c call) int64 { return int64(h.RcptVerdict(c.i32(0), c.i64(1))) },
	"kv_get":       func(h guest.Host, c call) int64 { return int64(h.KvGet(c.buf(0), c.buf(2))) },
	"kv_set":       func(h guest.Host, c call) int64 { return int64(h.KvSet(c.buf(0), c.buf(2), c.i64(4))) },
	"kv_incr":      func(h guest.Host, c call) int64 { return int64(h.KvIncr(c.buf(0), c.i64(2), c.i64(3), c.buf(4))) },
	"kv_cas":       func(h guest.Host, c call) int64 { return int64(h.KvCas(c.buf(0), c.buf(2), c.buf(4), c.i64(6))) },
	"kv_del":       func(h guest.Host, c call) int64 { return int64(h.KvDel(c.buf(0))) },
	"dns":          func(h guest.Host, c call) int64 { return int64(h.Dns(c.i32(0), c.buf(1), c.buf(3))) },
	"http":         func(h guest.Host, c call) int64 { return int64(h.Http(c.buf(0), c.buf(2))) },
	"dsn":          func(h guest.Host, c call) int64 { return int64(h.Dsn(c.buf(0))) },
	"submit":       func(h guest.Host, c call) int64 { return int64(h.Submit(c.i32(0), c.buf(1))) },
	"wait":         func(h guest.Host, c call) int64 { return int64(h.Wait(c.i32(0), c.i32(1), c.buf(2))) },
	"secret":       func(h guest.Host, c call) int64 { return int64(h.Secret(c.buf(0), c.buf(2))) },
	"out_relay":    func(h guest.Host, c call) int64 { return int64(h.OutRelay(c.buf(0))) },
	"out_source":   func(h guest.Host, c call) int64 { return int64(h.OutSource(c.buf(0))) },
	"out_tls":      func(h guest.Host, c call) int64 { return int64(h.OutTls(c.i32(0))) },
	"out_connect":  func(h guest.Host, c call) int64 { return int64(h.OutConnect(c.buf(0))) },
}

// addImports makes mg1 known to the runtime, from the table of package abi.
func (r *Runtime) addImports(ctx context.Context) error {
	b := r.wz.NewHostModuleBuilder(abi.Module)
	for _, imp := range abi.Imports() {
		f, ok := functions[imp.Name]
		if !ok {
			return fmt.Errorf("wasmhost: no function for import %s.%s", abi.Module, imp.Name)
		}
		params, results := importTypes(imp)
		narrow := imp.Result == abi.I32
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, stack []uint64) {
			in := caller(ctx)
			in.called()
			v := f(in.host, call{in.memory, stack})
			if narrow {
				stack[0] = api.EncodeI32(int32(v))
				return
			}
			stack[0] = uint64(v)
		}), params, results).Export(imp.Name)
	}
	_, err := b.Instantiate(ctx)
	if err != nil {
		return fmt.Errorf("wasmhost: %s: %w", abi.Module, err)
	}
	return nil
}

// importTypes returns an import's signature in wazero's words, which are the binary
// format's own numbers.
func importTypes(imp abi.Import) (params, results []api.ValueType) {
	for _, p := range imp.Params {
		params = append(params, api.ValueType(p.Type))
	}
	return params, []api.ValueType{api.ValueType(imp.Result)}
}
