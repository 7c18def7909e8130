package policy

import (
	"context"
	"time"
)

// chunk.go: asking filters about a body while the client still sends it. A filter that
// refuses here spares everybody the rest. It sees the body as it comes: what filters make
// of it belongs to StageMessage.

// MaxChunk is the most octets of a piece of a body. Whoever asks cuts a body into pieces of
// exactly so many and a last one that is shorter, so that what filters see does not depend
// on how the client's octets came.
const MaxChunk = 64 << 10

// Chunk is a piece of a body as it came.
type Chunk struct {
	Offset int64 // of Data in the body
	Data   []byte
}

// WantsChunks tells whether a filter wants to be asked about the next piece of the body
// that is coming in. Without one there is no need to make it.
func (r *Run) WantsChunks() bool {
	if !r.stages.Has(StageChunk) {
		return false
	}
	for i := range r.links {
		if r.links[i].wants(StageChunk) {
			return true
		}
	}
	return false
}

// wants tells whether the filter is to be asked at stage.
func (l *link) wants(stage Stage) bool {
	return !l.skipped && l.stages.Has(stage) && !(l.noChunks && stage == StageChunk)
}

// DecideChunk asks the filters about the piece p of the body that begins at offset off, at
// StageChunk. The pieces of a body come in order and without a gap; p is not kept.
//
// A filter sees all pieces or none behind the first that it missed: one that says Skip gets
// no more of this message and is asked again at StageMessage, one that fails as well; and a
// verdict that ends the asking ends it for the filters behind, for this message.
func (r *Run) DecideChunk(ctx context.Context, tx *Transaction, off int64, p []byte) Decision {
	if !r.WantsChunks() {
		return Decision{}
	}
	return r.decide(ctx, &Event{Stage: StageChunk, Session: r.session, Time: time.Now(), Tx: tx, Edits: &r.edits,
		Chunk: &Chunk{Offset: off, Data: p}})
}

// endChunks makes the filters behind link i, which were not asked about a piece, see no
// more of this body.
func (r *Run) endChunks(stage Stage, i int) {
	if stage != StageChunk {
		return
	}
	for ; i+1 < len(r.links); i++ {
		r.links[i+1].noChunks = true
	}
}
