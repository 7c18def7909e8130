package filter

import "github.com/penstock/penstock/guest-sdk/abi"

// scan.go: work on content that the gateway does, at its own speed and without copying the
// content into the filter.

// MatchKind is what the patterns of a [MatchSet] are.
type MatchKind = abi.MatchKind

// The kinds of patterns.
const (
	// Literal patterns are octets.
	Literal = abi.MatchLiteral
	// Fold patterns are octets, with the letters of ASCII in any case.
	Fold = abi.MatchFold
	// Regexp patterns are regular expressions as package regexp has them; ^ and $ are by
	// line. A match does not reach over more than some lines: see docs/abi.md at match.
	Regexp = abi.MatchRegexp
)

// MatchSet is a set of patterns that is looked for as a whole: ten thousand literals cost
// little more than one. It is made by [Config.MatchSet].
type MatchSet struct {
	id int32
	n  int
}

// Hit is a place at which a pattern was found.
type Hit struct {
	Pattern int   // its number in the set
	Off     int64 // where it begins
	Len     int   // octets
}

// MatchSet makes a set of the patterns under key, a list of strings. A pattern that will not
// do is a fault of the key. The set of no patterns finds nothing. A filter may have 16 sets.
func (c Config) MatchSet(key string, kind MatchKind, def ...string) *MatchSet {
	s, err := c.NewMatchSet(kind, c.Strings(key, def...)...)
	if err != nil {
		c.Fail(key, err.Error())
	}
	return s
}

// NewMatchSet makes a set of patterns that are not in the configuration, or not as they stand
// there. Why a pattern will not do is in the log.
func (c Config) NewMatchSet(kind MatchKind, patterns ...string) (*MatchSet, error) {
	s := &MatchSet{n: len(patterns)}
	if s.n == 0 {
		return s, nil
	}
	var b []byte
	for _, p := range patterns {
		n := len(p)
		b = append(append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24)), p...)
	}
	s.id = c.host.MatchSet(int32(kind), b)
	return s, check("make a set of patterns", s.id)
}

// Match looks for the patterns of s in the body as it is, still encoded, from off on. Each
// pattern that is found is there once, with its first place, by the order of the patterns. To
// look in what mail readers show, see [Part.Match].
func (b *Body) Match(s *MatchSet, off int64) ([]Hit, error) {
	return matchIn(b.src.host, s, abi.ScanBody, off)
}

// Match is like [Body.Match], in the header section as it is. It can be used in OnData.
func (h Header) Match(s *MatchSet) ([]Hit, error) { return matchIn(h.host, s, abi.ScanHeader, 0) }

// Match is like [Body.Match], in the part's decoded content.
func (p *Part) Match(s *MatchSet, off int64) ([]Hit, error) {
	return matchIn(p.host, s, int32(p.index), off)
}

func matchIn(h host, s *MatchSet, part int32, off int64) ([]Hit, error) {
	if s.n == 0 {
		return nil, nil
	}
	b := make([]byte, min(s.n, 16)*abi.HitSize)
	for {
		n := h.Match(s.id, part, off, b)
		if err := check("match", n); err != nil {
			return nil, err
		}
		if int(n)*abi.HitSize > len(b) {
			b = make([]byte, int(n)*abi.HitSize)
			continue
		}
		hits := make([]Hit, n)
		for i := range hits {
			r := b[i*abi.HitSize:]
			hits[i] = Hit{int(u32(r[abi.HitPattern:])), int64(u64(r)), int(u32(r[abi.HitLen:]))}
		}
		return hits, nil
	}
}

// HashAlg is a checksum.
type HashAlg = abi.HashAlg

// The checksums. MD5 and SHA-1 are for looking up what is known by them; they prove nothing.
const (
	SHA256 = abi.HashSHA256
	SHA1   = abi.HashSHA1
	MD5    = abi.HashMD5
)

// Hash returns a checksum of the body as it is.
func (b *Body) Hash(alg HashAlg) ([]byte, error) { return hashOf(b.src.host, alg, abi.ScanBody) }

// Hash returns a checksum of the part's decoded content.
func (p *Part) Hash(alg HashAlg) ([]byte, error) { return hashOf(p.host, alg, int32(p.index)) }

func hashOf(h host, alg HashAlg, part int32) ([]byte, error) {
	b := make([]byte, 64)
	n := h.Hash(int32(alg), part, b)
	if err := check("hash", n); err != nil {
		return nil, err
	}
	return b[:n], nil
}
