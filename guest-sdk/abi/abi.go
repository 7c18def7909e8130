// Package abi is the contract between Penstock and a WebAssembly filter: mg1. It holds
// its names, numbers and layouts, and imports nothing, so that hosts, guests and
// documents are all made from this one place. docs/abi.md is written from it.
//
// Numbers and names are only ever added. A change that an old guest could notice needs a
// new major, which is a new import module beside this one.
//
// # What a guest exports
//
//	memory                              its linear memory
//	_initialize ()                      optional, run once before all else
//	mg1_init    (host_minor i32) → i64  once: mailbox pointer << 32 | capacity; negative refuses
//	mg1_hook    (hook i32, len i32) → i64  every hook: the frame's length in, a verdict out
//
// # What a module may be
//
// WebAssembly 2.0, SIMD and reference types included, with one memory of 64 MiB at most;
// threads, tail calls, exceptions and memories of 64 bits are not in it. A module has 16 MiB
// at most, and a function 1 MiB and 4,096 locals. It imports functions alone: those of mg1,
// and of wasi_snapshot_preview1 what language runtimes need to start. Clock and random octets
// are real; there is no file system and no network; descriptors 1 and 2 go to the log if the
// guest fails; poll_oneoff returns at once. The environment is GOMEMLIMIT, GOMAXPROCS and
// GODEBUG.
//
// mg1_init runs once, and each copy of the guest begins with the memory and the globals that
// it left; of a guest that changes its tables or drops segments it runs for each copy, and
// must choose the same each time. The operator says whether a copy is for a session, for one
// hook or for all: what must last for a session in any case is kept with sess_set.
//
// # What a guest says of itself
//
// The custom section mg1.manifest, which is optional, is a JSON object of at most 64 KiB:
//
//	name, version    for people
//	capabilities     a list: what it asks the operator to grant
//	optional         a list: what it uses with some configurations alone
//	min_minor        a number: the least minor version that it can do with
//
// # The event frame
//
// Before mg1_hook the host writes a frame into the mailbox, in little endian:
//
//	 0          4       6        8           12      16
//	┌──────────┬───────┬────────┬───────────┬───────┐
//	│ "MG1\0"  │ hook  │ fields │ total len │ flags │
//	├──────────┴───────┼────────┴───────────┼───────┤
//	│ session id   u64 │ transaction    u64 │         16, 24
//	├──────────────────┼────────────────────┤
//	│ time unix ns i64 │ cpu budget ns  i64 │         32, 40
//	├────────┬─────────┼─────────┬──────────┤
//	│ id u16 │ kind u16│ off u32 │ len u32  │ × fields, from 48
//	├────────┴─────────┴─────────┴──────────┤
//	│ payload: bytes that off and len name  │
//	└───────────────────────────────────────┘
//
// A guest skips the fields it does not know. What did not fit is left out, FlagPartial
// is set then, and the import "get" still has it. The frame is the guest's until
// mg1_hook returns.
//
// # The record of a part
//
// The import part_info describes a part of the message, in little endian:
//
//	 0          4       8       12       16           24       32       40
//	┌──────────┬───────┬───────┬────────┬────────────┬────────┬────────┐
//	│ head len │ flags │ depth │ parent │ header off │ off    │ size   │
//	│ u32, 40  │ u32   │ u32   │ i32    │ i64        │ i64    │ i64    │
//	├──────────┴───────┴───────┴────────┴────────────┴────────┴────────┤
//	│ texts, each a u32 length and that many octets of UTF-8: type,    │
//	│ charset, disposition, transfer encoding, content id, file name,  │
//	│ other file names (with NUL between them)                         │
//	└──────────────────────────────────────────────────────────────────┘
//
// Offsets are those of body_read; the header offset of part 0, the message, is -1. Parent and
// depth say where a part stands: -1 and 0 for the message. More may be added to the head, and
// behind the texts.
//
// # The verdict
//
//	bit 63     49    48       46..37 36..27  26..24 23..8     7..0
//	┌───────┬─────┬───────┬────────┬───────┬───────┬───────┬────────┐
//	│ error │  …  │ text  │ detail │subject│ class │ code  │ action │
//	└───────┴─────┴───────┴────────┴───────┴───────┴───────┴────────┘
//
// With the error bit the guest says that it failed; the low 32 bits are a number of its
// own for the log.
//
// # Answers from outside
//
// What dns reads, in little endian; the octets of a record are those of the table of types:
//
//	 0         4            8
//	┌─────────┬────────────┬──────────────────────────┐
//	│ flags   │ seconds    │ u32 length, octets  × records
//	└─────────┴────────────┴──────────────────────────┘
//
// The seconds are how long the answer holds; bit 0 of flags says that it was validated. A
// request of http is a list, elements of a u32 length and that many octets: method, URL,
// body, and then name and value of each header field. A response is
//
//	 0         4
//	┌─────────┬──────────────────────────────────────────────┐
//	│ status  │ a list: body, then name and value of each field
//	└─────────┴──────────────────────────────────────────────┘
package abi

// Version of the contract. The major is in the name of the import module.
const (
	Module = "mg1"
	// Minor grows when something is added.
	Minor = 2
)

// Names of the guest's exports.
const (
	ExportMemory     = "memory"
	ExportInitialize = "_initialize"
	ExportInit       = "mg1_init"
	ExportHook       = "mg1_hook"
	// ReservedPrefix begins names that a guest must not export.
	ReservedPrefix = "__mg"
	// ManifestSection is the custom section that holds the manifest.
	ManifestSection = Module + ".manifest"
)

// Sizes of the mailbox in octets.
const (
	MinMailbox = 4 << 10
	MaxMailbox = 1 << 20
	// ChunkMailbox is the least for a guest that subscribes to HookChunk.
	ChunkMailbox = 72 << 10
)

// Hook is the number of a stage of the dialogue.
type Hook uint32

// The hooks.
const (
	HookConnect Hook = 1
	HookSecure  Hook = 2
	HookHelo    Hook = 3
	HookAuth    Hook = 4
	HookMail    Hook = 5
	HookRcpt    Hook = 6
	HookData    Hook = 7
	HookHeaders Hook = 8
	HookChunk   Hook = 9
	HookMessage Hook = 10
	HookReset   Hook = 11
	HookClose   Hook = 12
)

// The hooks of mail on its way out.
const (
	HookRoute     Hook = 13
	HookDeliver   Hook = 14
	HookDeferred  Hook = 15
	HookBounced   Hook = 16
	HookDelivered Hook = 17

	// LastHook has the highest number.
	LastHook = HookDelivered
)

// Hooks is a set of hooks: bit n stands for hook n. It is the mask of subscribe, and
// in the table of imports says at which hooks a function may be called.
type Hooks uint64

// Sets of hooks that go together.
const (
	// DuringInit stands for mg1_init. It uses bit 0, which is no hook.
	DuringInit Hooks = 1 << 0
	// Deciding are the hooks whose verdict counts.
	Deciding = Hooks(1<<HookConnect | 1<<HookSecure | 1<<HookHelo | 1<<HookAuth | 1<<HookMail | 1<<HookRcpt |
		1<<HookData | 1<<HookHeaders | 1<<HookChunk | 1<<HookMessage | 1<<HookRoute | 1<<HookDeliver)
	// Observing are the hooks whose verdict does not count.
	Observing = Hooks(1<<HookReset | 1<<HookClose | 1<<HookDeferred | 1<<HookBounced | 1<<HookDelivered)
	// InSession are all hooks.
	InSession = Deciding | Observing
	// Anytime is in mg1_init and at all hooks.
	Anytime = DuringInit | InSession
	// WithHeader are the hooks at which the header section is there.
	WithHeader = Hooks(1<<HookHeaders | 1<<HookChunk | 1<<HookMessage)
	// EditingHeader are the hooks at which the header section may be changed.
	EditingHeader = Hooks(1<<HookHeaders | 1<<HookMessage)
	// WithBody is the hook at which the body is there.
	WithBody = Hooks(1 << HookMessage)
	// WithSender are the hooks at which the sender may be changed.
	WithSender = Hooks(1<<HookMail | 1<<HookRcpt | 1<<HookData | 1<<HookHeaders | 1<<HookMessage)
	// WithRcpts are the hooks at which there are recipients.
	WithRcpts = Hooks(1<<HookRcpt|1<<HookData|1<<HookHeaders|1<<HookChunk|1<<HookMessage) | Outward
	// EditingRcpts are the hooks at which recipients may be changed.
	EditingRcpts = Hooks(1<<HookRcpt | 1<<HookData | 1<<HookHeaders | 1<<HookMessage)
	// JudgingRcpts are the hooks at which a recipient may have a verdict of its own.
	JudgingRcpts = Hooks(1<<HookHeaders | 1<<HookMessage)
	// Outward are the hooks of mail on its way out.
	Outward = Hooks(1<<HookRoute | 1<<HookDeliver | 1<<HookDeferred | 1<<HookBounced | 1<<HookDelivered)
	// Routing is the hook at which the way of a message may be chosen, Connecting the one at
	// which another address may be.
	Routing    = Hooks(1 << HookRoute)
	Connecting = Hooks(1 << HookDeliver)
)

// Has tells whether h is in the set.
func (s Hooks) Has(h Hook) bool { return s&(1<<h) != 0 }

// Layout of the frame: offsets of its head, and the size of head and of one entry.
const (
	FrameMagic     = 0x0031474d // "MG1\0"
	OffMagic       = 0
	OffHook        = 4
	OffFields      = 6
	OffLength      = 8
	OffFlags       = 12
	OffSession     = 16
	OffTransaction = 24
	OffTime        = 32
	OffBudget      = 40
	FrameHead      = 48
	FrameEntry     = 12
	EntryKind      = 2
	EntryOff       = 4
	EntryLen       = 8
	FlagPartial    = 1 << 0 // fields were left out of the frame
)

// Kind is the kind of a field's payload.
type Kind uint16

// The kinds.
const (
	KindBytes Kind = 1 // octets
	KindInt   Kind = 2 // an int64, 8 octets
	KindList  Kind = 3 // elements, each a uint32 length and its octets
	KindIP    Kind = 4 // 4 or 16 octets in network order
)

// Field is the number of a fact about session or transaction.
type Field uint16

// The fields.
const (
	FieldClientIP   Field = 1
	FieldRDNS       Field = 2
	FieldHelo       Field = 3
	FieldTLSVersion Field = 4
	FieldTLSCipher  Field = 5
	FieldTLSPeer    Field = 6
	FieldAuthUser   Field = 7
	FieldMailFrom   Field = 8
	FieldMailParams Field = 9
	FieldRcpt       Field = 10
	FieldRcptParams Field = 11
	FieldSize       Field = 12
	FieldListener   Field = 13
	FieldTags       Field = 14
	FieldConnID     Field = 15
	FieldClientPort Field = 16
	FieldServerIP   Field = 17
	FieldTLSName    Field = 18
	FieldTLSALPN    Field = 19
	FieldRcpts      Field = 20

	FieldAuthMechanism Field = 21
	FieldAuthLogin     Field = 22
	FieldAuthAuthz     Field = 23
	FieldAuthPassword  Field = 24
	FieldAuthToken     Field = 25

	FieldTLSVerified    Field = 26
	FieldTLSFingerprint Field = 27

	FieldScores Field = 28

	FieldChunk       Field = 29
	FieldChunkOffset Field = 30

	FieldQueueID Field = 31
	FieldTarget  Field = 32
	FieldTry     Field = 33
	FieldArrived Field = 34
	FieldExpires Field = 35
	FieldWay     Field = 36
	FieldHops    Field = 37
	FieldFates   Field = 38
)

// Errno is what an import returns instead of a length; it is negative.
type Errno int32

// The error numbers.
const (
	EINVAL   Errno = -1 // an argument makes no sense
	ENOENT   Errno = -2 // there is no such thing
	EPERM    Errno = -3 // the operator did not grant it
	ELIMIT   Errno = -4 // a limit of the filter is reached
	ETIME    Errno = -5 // it took too long
	EUNAVAIL Errno = -6 // the host cannot do it now
	EPHASE   Errno = -7 // not at this hook
)

// Error implements error with the number's name.
func (e Errno) Error() string {
	for _, x := range Errnos {
		if x.Errno == e {
			return "mg1: " + x.Name + ": " + x.Doc
		}
	}
	return "mg1: unknown error"
}

// Action is the lowest octet of a verdict.
type Action uint8

// The actions.
const (
	ActContinue   Action = 0
	ActAccept     Action = 1
	ActReject     Action = 2
	ActTempfail   Action = 3
	ActDiscard    Action = 4
	ActQuarantine Action = 5
	ActDisconnect Action = 6
	ActSkip       Action = 7
)

// Encryption is how far connections of outgoing mail must be encrypted, as out_tls takes it.
type Encryption int32

// The values of Encryption.
const (
	TLSPolicy        Encryption = 0 // as the other side's policy says
	TLSOff           Encryption = 1 // STARTTLS is not said
	TLSOpportunistic Encryption = 2 // where it is offered, whatever the other side's policy says
	TLSRequired      Encryption = 3 // not in clear
	TLSVerify        Encryption = 4 // and to a host with a certificate for its name
)

// Level is the level of a log line.
type Level int32

// The levels.
const (
	LevelDebug Level = 0
	LevelInfo  Level = 1
	LevelWarn  Level = 2
	LevelError Level = 3
)

// Layout of the record of a part.
const (
	PartHead      = 40
	PartOffFlags  = 4
	PartOffDepth  = 8
	PartOffParent = 12
	PartOffHeader = 16
	PartOffOff    = 24
	PartOffSize   = 32
)

// PartFlag says that something about a part is not as it should be.
type PartFlag uint32

// The flags of parts.
const (
	PartBroken          PartFlag = 1 << 0 // a multipart without parts or end, or nearly a delimiter in it; a type that is none; a line among header fields that is none
	PartAmbiguous       PartFlag = 1 << 1 // a field or parameter is there twice: readers differ in which one counts
	PartDeep            PartFlag = 1 << 2 // not opened: too deep
	PartOpaque          PartFlag = 1 << 3 // a message under a transfer encoding, not opened
	PartTruncated       PartFlag = 1 << 4 // of part 0: there are more parts than are listed
	PartLongHeader      PartFlag = 1 << 5 // only the beginning of its header section was looked at
	PartUnknownEncoding PartFlag = 1 << 6 // its transfer encoding is not known: decoded is raw
)

// PartForm is how the octets of a part are read.
type PartForm int32

// The forms.
const (
	PartRaw     PartForm = 0 // the content as it is in the message
	PartDecoded PartForm = 1 // the content without its transfer encoding
	PartHeader  PartForm = 2 // the header section
)

// MatchKind is what the patterns of a set are.
type MatchKind int32

// The kinds of patterns.
const (
	MatchLiteral MatchKind = 0 // octets
	MatchFold    MatchKind = 1 // octets, letters of ASCII in any case
	MatchRegexp  MatchKind = 2 // regular expressions in RE2's syntax; ^ and $ are by line
)

// What match and hash look at besides parts, which they take decoded.
const (
	ScanBody   = -1 // the whole body as it is
	ScanHeader = -2 // the header section as it is
)

// Layout of a hit, as match writes it: a place as i64, then these, each an u32.
const (
	HitPattern = 8  // number of the pattern
	HitLen     = 12 // octets that it matches
	HitSize    = 16
)

// HashAlg is a checksum.
type HashAlg int32

// The checksums. MD5 and SHA-1 are for looking up what is known by them; they prove nothing.
const (
	HashSHA256 HashAlg = 1
	HashSHA1   HashAlg = 2
	HashMD5    HashAlg = 3
)

// MetricKind is how the values of a metric behave.
type MetricKind int32

// MetricCounter only grows.
const MetricCounter MetricKind = 0

// Verdict is what mg1_hook returns.
type Verdict uint64

// ErrorBit is set in the verdict of a guest that failed.
const ErrorBit Verdict = 1 << 63

const textBit = 48

// NewVerdict packs a verdict. code 0 means the action's default reply; class, subject and
// detail are the enhanced code, all 0 for the default; text says that reply was called.
func NewVerdict(a Action, code, class, subject, detail int, text bool) Verdict {
	v := Verdict(a) | Verdict(code&0xffff)<<8 | Verdict(class&7)<<24 | Verdict(subject&0x3ff)<<27 | Verdict(detail&0x3ff)<<37
	if text {
		v |= 1 << textBit
	}
	return v
}

// Failed packs the verdict of a guest that failed, with a number of its own.
func Failed(code uint32) Verdict { return ErrorBit | Verdict(code) }

// Action returns the action.
func (v Verdict) Action() Action { return Action(v) }

// Code returns the reply code, 0 for the default.
func (v Verdict) Code() int { return int(v >> 8 & 0xffff) }

// Enhanced returns class, subject and detail of the enhanced code.
func (v Verdict) Enhanced() (class, subject, detail int) {
	return int(v >> 24 & 7), int(v >> 27 & 0x3ff), int(v >> 37 & 0x3ff)
}

// HasText tells whether the reply's text was given with the import reply.
func (v Verdict) HasText() bool { return v>>textBit&1 != 0 }

// Unknown returns the bits that must be zero in a verdict without ErrorBit.
func (v Verdict) Unknown() uint64 { return uint64(v >> (textBit + 1)) }

// Limits of what a guest may give or ask for.
const (
	MaxReply      = 4 << 10  // octets of a reply's text
	MaxReplyLines = 8        // lines of it
	MaxLogLine    = 2 << 10  // octets of a log line; the rest is cut off
	MaxLogLines   = 32       // log lines at one hook; the rest is counted and dropped
	MaxSession    = 16 << 10 // octets of all session values of a filter
	MaxAddress    = 512      // octets of an address
	MaxRandom     = 4 << 10  // octets of one call of random
	MaxHeaderRaw  = 1 << 20  // octets of one call of hdr_raw
	MaxBodyRead   = 1 << 20  // octets of one call of body_read

	MaxKVKey       = 512       // octets of a key of kv
	MaxKVValue     = 64 << 10  // octets of its value
	MaxKV          = 128       // calls of kv at one hook
	MaxDNS         = 32        // look-ups at one hook
	MaxDNSName     = 1024      // octets of a name that is looked up
	MaxHTTP        = 8         // requests at one hook
	MaxHTTPRequest = 256 << 10 // octets of a request
	MaxHTTPURL     = 8 << 10   // octets of its URL
	MaxHTTPFields  = 64        // header fields of it
	MaxDSN         = 64 << 10  // octets of a notification
	MaxDSNs        = 4         // notifications at one hook

	MaxRelay  = 300 // octets of a relay
	MaxSource = 64  // octets of a source's name

	MaxScoreKey   = 64            // octets of a score's key
	MaxScore      = 1_000_000_000 // thousandths of one addition
	MaxMetrics    = 32            // metrics of a filter
	MaxMetricName = 48            // octets of a metric's name
	MaxParts      = 1000          // parts of a message that are listed
	MaxPartDepth  = 32            // depth of a part that is listed
	MaxMatchSets  = 16            // sets of patterns
	MaxMatchText  = 1 << 20       // octets of the list of a set's patterns
	MaxPatterns   = 10_000        // literals of a set
	MaxLiteral    = 256           // octets of a literal
	MaxRegexps    = 64            // regular expressions of a set

	MaxChunk = 64 << 10 // octets of the body at hook chunk; all pieces but the last have so many
)
