package postgres

// seal.go encrypts files with AES-256-GCM.
//
//	+---------+------------+-----------+--- ... ---+---------+
//	| version | key id, 4  | nonce, 12 | encrypted | tag, 16 |
//	+---------+------------+-----------+--- ... ---+---------+
//
// The name of the file is associated data: a file that somebody moves to another name in the
// database does not open there. Nonces are random, which is good for 2^32 files written with
// one key; that is a file a second for a century.

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/penstock/penstock/store"
)

const (
	sealVersion = 1
	keyIDSize   = 4
	sealHeader  = 1 + keyIDSize
)

// sealer encrypts with its first key.
type sealer struct {
	first [keyIDSize]byte
	keys  map[[keyIDSize]byte]cipher.AEAD
}

// keyID tells keys apart, and nothing about them.
func keyID(key []byte) [keyIDSize]byte {
	h := sha256.Sum256(append([]byte("penstock key id "), key...))
	return [keyIDSize]byte(h[:])
}

func newSealer(keys [][]byte) (*sealer, error) {
	s := &sealer{keys: make(map[[keyIDSize]byte]cipher.AEAD)}
	for i, key := range keys {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		s.keys[keyID(key)] = aead
		if i == 0 {
			s.first = keyID(key)
		}
	}
	if len(s.keys) < len(keys) {
		return nil, errors.New("two keys are the same")
	}
	return s, nil
}

func sealedName(name string) []byte { return []byte("penstock file " + name) }

func (s *sealer) seal(name string, data []byte) []byte {
	b := append([]byte{sealVersion}, s.first[:]...)
	return s.keys[s.first].Seal(b, nil, data, sealedName(name))
}

// open returns store.ErrCorrupt for what was changed, and another error for what was
// encrypted with a key that we do not have.
func (s *sealer) open(name string, b []byte) ([]byte, error) {
	if len(b) < sealHeader || b[0] != sealVersion {
		return nil, fmt.Errorf("%w: file %q is not encrypted as we do it", store.ErrCorrupt, name)
	}
	aead := s.keys[[keyIDSize]byte(b[1:])]
	if aead == nil {
		return nil, fmt.Errorf("postgres: file %q was encrypted with a key that is not configured", name)
	}
	data, err := aead.Open([]byte{}, nil, b[sealHeader:], sealedName(name))
	if err != nil {
		return nil, fmt.Errorf("%w: file %q does not fit its checksum", store.ErrCorrupt, name)
	}
	return data, nil
}
