//go:build wasip1

package filter

import (
	"unsafe"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// host_wasip1.go: the filter as a WebAssembly module. A pointer that goes to the host is
// used during the call alone, so that buffers may live on the stack (noescape).

// mailbox is where the host puts event frames. It is a variable of the package because
// its address is given away once and must never change. A filter that wants pieces of the
// body has a larger one.
var mailbox = make([]byte, 8<<10)

//go:wasmexport mg1_init
func exportInit(int32) int64 {
	if served == nil {
		logLine(host{}, LevelError, "the program has no filter: nothing called Serve", nil)
		return int64(abi.EINVAL)
	}
	mask, err := served.start(host{})
	if err != nil {
		logLine(host{}, LevelError, err.Error(), nil)
		return int64(abi.EINVAL)
	}
	if abi.Hooks(mask).Has(abi.HookChunk) {
		mailbox = make([]byte, abi.ChunkMailbox)
	}
	lookForRand()
	return int64(uintptr(ptr(mailbox)))<<32 | int64(len(mailbox))
}

//go:wasmexport mg1_hook
func exportHook(hook, length int32) int64 {
	if length < 0 || int(length) > len(mailbox) {
		return int64(uint64(abi.Failed(failFrame)))
	}
	seedRand()
	return int64(uint64(served.hook(host{}, uint32(hook), mailbox[:length])))
}

// host calls the imports. It has no size, so the calls are direct.
type host struct{}

func ptr(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

func size(b []byte) int32 { return int32(len(b)) }

func (host) Subscribe(mask uint64) int32        { return subscribe(int64(mask)) }
func (host) Features() int32                    { return int32(features()) }
func (host) Get(f, i int32, buf []byte) int32   { return get(f, i, ptr(buf), size(buf)) }
func (host) Config(off int32, buf []byte) int32 { return config(off, ptr(buf), size(buf)) }
func (host) Reply(text []byte) int32            { return reply(ptr(text), size(text)) }
func (host) Tag(k, v []byte) int32              { return tag(ptr(k), size(k), ptr(v), size(v)) }
func (host) Score(k []byte, milli int64) int32  { return score(ptr(k), size(k), milli) }
func (host) Log(level int32, line []byte) int32 { return log(level, ptr(line), size(line)) }
func (host) LogEnabled(level int32) int32       { return logEnabled(level) }
func (host) Metric(n []byte, kind int32) int32  { return metric(ptr(n), size(n), kind) }
func (host) MetricAdd(id int32, v int64) int32  { return metricAdd(id, v) }
func (host) Now() int64                         { return now() }
func (host) Mono() int64                        { return mono() }
func (host) Random(buf []byte) int32            { return random(ptr(buf), size(buf)) }
func (host) SessGet(k, buf []byte) int32        { return sessGet(ptr(k), size(k), ptr(buf), size(buf)) }
func (host) SessSet(k, v []byte) int32          { return sessSet(ptr(k), size(k), ptr(v), size(v)) }
func (host) HdrCount() int32                    { return hdrCount() }
func (host) HdrGet(i int32, buf []byte) int64   { return hdrGet(i, ptr(buf), size(buf)) }
func (host) HdrFind(n []byte, from int32) int32 { return hdrFind(ptr(n), size(n), from) }
func (host) HdrRaw(off int32, buf []byte) int32 { return hdrRaw(off, ptr(buf), size(buf)) }
func (host) HdrAdd(at int32, n, v []byte) int32 { return hdrAdd(at, ptr(n), size(n), ptr(v), size(v)) }
func (host) HdrSet(i int32, v []byte) int32     { return hdrSet(i, ptr(v), size(v)) }
func (host) HdrDel(i int32) int32               { return hdrDel(i) }
func (host) BodyLen() int64                     { return bodyLen() }
func (host) BodyRead(off int64, b []byte) int32 { return bodyRead(off, ptr(b), size(b)) }
func (host) BodySplice(off, del int64, p []byte) int32 {
	return bodySplice(off, del, ptr(p), size(p))
}
func (host) BodyNew() int32                   { return bodyNew() }
func (host) BodyWrite(p []byte) int32         { return bodyWrite(ptr(p), size(p)) }
func (host) BodyCommit() int32                { return bodyCommit() }
func (host) PartCount() int32                 { return partCount() }
func (host) PartInfo(i int32, b []byte) int32 { return partInfo(i, ptr(b), size(b)) }
func (host) PartLen(i, form int32) int64      { return partLen(i, form) }
func (host) PartRead(i, form int32, off int64, b []byte) int32 {
	return partRead(i, form, off, ptr(b), size(b))
}
func (host) MatchSet(k int32, list []byte) int32 { return matchSet(k, ptr(list), size(list)) }
func (host) Match(set, part int32, off int64, b []byte) int32 {
	return match(set, part, off, ptr(b), size(b))
}
func (host) Hash(alg, part int32, b []byte) int32 { return hash(alg, part, ptr(b), size(b)) }
func (host) EnvFrom(addr []byte) int32            { return envFrom(ptr(addr), size(addr)) }
func (host) RcptCount() int32                     { return rcptCount() }
func (host) RcptGet(i int32, buf []byte) int32    { return rcptGet(i, ptr(buf), size(buf)) }
func (host) RcptAdd(addr []byte) int32            { return rcptAdd(ptr(addr), size(addr)) }
func (host) RcptSet(i int32, addr []byte) int32   { return rcptSet(i, ptr(addr), size(addr)) }
func (host) RcptDel(i int32) int32                { return rcptDel(i) }
func (host) RcptVerdict(i int32, v int64) int32   { return rcptVerdict(i, v) }
func (host) KvGet(k, buf []byte) int32            { return kvGet(ptr(k), size(k), ptr(buf), size(buf)) }
func (host) KvSet(k, v []byte, ttl int64) int32 {
	return kvSet(ptr(k), size(k), ptr(v), size(v), ttl)
}
func (host) KvIncr(k []byte, delta, ttl int64, buf []byte) int32 {
	return kvIncr(ptr(k), size(k), delta, ttl, ptr(buf), size(buf))
}
func (host) KvCas(k, old, v []byte, ttl int64) int32 {
	return kvCas(ptr(k), size(k), ptr(old), size(old), ptr(v), size(v), ttl)
}
func (host) KvDel(k []byte) int32 { return kvDel(ptr(k), size(k)) }
func (host) Dns(typ int32, n, buf []byte) int32 {
	return dns(typ, ptr(n), size(n), ptr(buf), size(buf))
}
func (host) Http(req, buf []byte) int32            { return http(ptr(req), size(req), ptr(buf), size(buf)) }
func (host) Dsn(p []byte) int32                    { return dsn(ptr(p), size(p)) }
func (host) Submit(kind int32, p []byte) int32     { return submit(kind, ptr(p), size(p)) }
func (host) Wait(h, timeout int32, b []byte) int32 { return wait(h, timeout, ptr(b), size(b)) }
func (host) Secret(n, buf []byte) int32            { return secretOf(ptr(n), size(n), ptr(buf), size(buf)) }
func (host) OutRelay(relay []byte) int32           { return outRelay(ptr(relay), size(relay)) }
func (host) OutSource(name []byte) int32           { return outSource(ptr(name), size(name)) }
func (host) OutTls(mode int32) int32               { return outTLS(mode) }
func (host) OutConnect(address []byte) int32       { return outConnect(ptr(address), size(address)) }

//go:wasmimport mg1 subscribe
//go:noescape
func subscribe(hooks int64) int32

//go:wasmimport mg1 features
//go:noescape
func features() int64

//go:wasmimport mg1 get
//go:noescape
func get(field, index int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 config
//go:noescape
func config(off int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 reply
//go:noescape
func reply(p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 tag
//go:noescape
func tag(kp unsafe.Pointer, kn int32, vp unsafe.Pointer, vn int32) int32

//go:wasmimport mg1 score
//go:noescape
func score(kp unsafe.Pointer, kn int32, milli int64) int32

//go:wasmimport mg1 log
//go:noescape
func log(level int32, p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 log_enabled
//go:noescape
func logEnabled(level int32) int32

//go:wasmimport mg1 metric
//go:noescape
func metric(np unsafe.Pointer, nn, kind int32) int32

//go:wasmimport mg1 metric_add
//go:noescape
func metricAdd(id int32, v int64) int32

//go:wasmimport mg1 now
//go:noescape
func now() int64

//go:wasmimport mg1 mono
//go:noescape
func mono() int64

//go:wasmimport mg1 random
//go:noescape
func random(buf unsafe.Pointer, n int32) int32

//go:wasmimport mg1 sess_get
//go:noescape
func sessGet(kp unsafe.Pointer, kn int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 sess_set
//go:noescape
func sessSet(kp unsafe.Pointer, kn int32, vp unsafe.Pointer, vn int32) int32

//go:wasmimport mg1 hdr_count
//go:noescape
func hdrCount() int32

//go:wasmimport mg1 hdr_get
//go:noescape
func hdrGet(i int32, buf unsafe.Pointer, cap int32) int64

//go:wasmimport mg1 hdr_find
//go:noescape
func hdrFind(np unsafe.Pointer, nn, from int32) int32

//go:wasmimport mg1 hdr_raw
//go:noescape
func hdrRaw(off int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 hdr_add
//go:noescape
func hdrAdd(at int32, np unsafe.Pointer, nn int32, vp unsafe.Pointer, vn int32) int32

//go:wasmimport mg1 hdr_set
//go:noescape
func hdrSet(i int32, vp unsafe.Pointer, vn int32) int32

//go:wasmimport mg1 hdr_del
//go:noescape
func hdrDel(i int32) int32

//go:wasmimport mg1 body_len
//go:noescape
func bodyLen() int64

//go:wasmimport mg1 body_read
//go:noescape
func bodyRead(off int64, buf unsafe.Pointer, n int32) int32

//go:wasmimport mg1 body_splice
//go:noescape
func bodySplice(off, del int64, p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 body_new
//go:noescape
func bodyNew() int32

//go:wasmimport mg1 body_write
//go:noescape
func bodyWrite(p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 body_commit
//go:noescape
func bodyCommit() int32

//go:wasmimport mg1 part_count
//go:noescape
func partCount() int32

//go:wasmimport mg1 part_info
//go:noescape
func partInfo(i int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 part_len
//go:noescape
func partLen(i, form int32) int64

//go:wasmimport mg1 part_read
//go:noescape
func partRead(i, form int32, off int64, buf unsafe.Pointer, n int32) int32

//go:wasmimport mg1 match_set
//go:noescape
func matchSet(kind int32, p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 match
//go:noescape
func match(set, part int32, off int64, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 hash
//go:noescape
func hash(alg, part int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 env_from
//go:noescape
func envFrom(p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 rcpt_count
//go:noescape
func rcptCount() int32

//go:wasmimport mg1 rcpt_get
//go:noescape
func rcptGet(i int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 rcpt_add
//go:noescape
func rcptAdd(p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 rcpt_set
//go:noescape
func rcptSet(i int32, p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 rcpt_del
//go:noescape
func rcptDel(i int32) int32

//go:wasmimport mg1 rcpt_verdict
//go:noescape
func rcptVerdict(i int32, verdict int64) int32

//go:wasmimport mg1 kv_get
//go:noescape
func kvGet(kp unsafe.Pointer, kn int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 kv_set
//go:noescape
func kvSet(kp unsafe.Pointer, kn int32, vp unsafe.Pointer, vn int32, ttl int64) int32

//go:wasmimport mg1 kv_incr
//go:noescape
func kvIncr(kp unsafe.Pointer, kn int32, delta, ttl int64, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 kv_cas
//go:noescape
func kvCas(kp unsafe.Pointer, kn int32, op unsafe.Pointer, on int32, vp unsafe.Pointer, vn int32, ttl int64) int32

//go:wasmimport mg1 kv_del
//go:noescape
func kvDel(kp unsafe.Pointer, kn int32) int32

//go:wasmimport mg1 dns
//go:noescape
func dns(typ int32, np unsafe.Pointer, nn int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 http
//go:noescape
func http(p unsafe.Pointer, n int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 dsn
//go:noescape
func dsn(p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 submit
//go:noescape
func submit(kind int32, p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 wait
//go:noescape
func wait(h, timeout int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 secret
//go:noescape
func secretOf(np unsafe.Pointer, nn int32, buf unsafe.Pointer, cap int32) int32

//go:wasmimport mg1 out_relay
//go:noescape
func outRelay(p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 out_source
//go:noescape
func outSource(p unsafe.Pointer, n int32) int32

//go:wasmimport mg1 out_tls
func outTLS(mode int32) int32

//go:wasmimport mg1 out_connect
//go:noescape
func outConnect(p unsafe.Pointer, n int32) int32
