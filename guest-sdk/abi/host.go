package abi

// Host is the gateway's side of the contract as Go has it: one method for each function of
// [Imports], which documents them. A []byte stands for a pointer and a length; of a buffer,
// its length is the room. Buffers are the guest's memory and valid during the call only.
// One call at a time.
type Host interface {
	Subscribe(mask uint64) int32
	Features() int32
	Get(field, index int32, buf []byte) int32
	Config(off int32, buf []byte) int32
	Reply(text []byte) int32
	Tag(key, value []byte) int32
	Score(key []byte, milli int64) int32
	Log(level int32, line []byte) int32
	LogEnabled(level int32) int32
	Metric(name []byte, kind int32) int32
	MetricAdd(id int32, v int64) int32
	Now() int64
	Mono() int64
	Random(buf []byte) int32
	SessGet(key, buf []byte) int32
	SessSet(key, value []byte) int32
	HdrCount() int32
	HdrGet(i int32, buf []byte) int64
	HdrFind(name []byte, from int32) int32
	HdrRaw(off int32, buf []byte) int32
	HdrAdd(at int32, name, value []byte) int32
	HdrSet(i int32, value []byte) int32
	HdrDel(i int32) int32
	BodyLen() int64
	BodyRead(off int64, buf []byte) int32
	BodySplice(off, del int64, data []byte) int32
	BodyNew() int32
	BodyWrite(p []byte) int32
	BodyCommit() int32
	PartCount() int32
	PartInfo(i int32, buf []byte) int32
	PartLen(i, form int32) int64
	PartRead(i, form int32, off int64, buf []byte) int32
	MatchSet(kind int32, list []byte) int32
	Match(set, part int32, off int64, buf []byte) int32
	Hash(alg, part int32, buf []byte) int32
	EnvFrom(addr []byte) int32
	RcptCount() int32
	RcptGet(i int32, buf []byte) int32
	RcptAdd(addr []byte) int32
	RcptSet(i int32, addr []byte) int32
	RcptDel(i int32) int32
	RcptVerdict(i int32, verdict int64) int32
	KvGet(key, buf []byte) int32
	KvSet(key, value []byte, ttlMs int64) int32
	KvIncr(key []byte, delta, ttlMs int64, buf []byte) int32
	KvCas(key, old, value []byte, ttlMs int64) int32
	KvDel(key []byte) int32
	Dns(typ int32, name, buf []byte) int32
	Http(request, buf []byte) int32
	Dsn(p []byte) int32
	Submit(kind int32, p []byte) int32
	Wait(h, timeoutMs int32, buf []byte) int32
	Secret(name, buf []byte) int32
	OutRelay(relay []byte) int32
	OutSource(name []byte) int32
	OutTls(mode int32) int32
	OutConnect(address []byte) int32
}
