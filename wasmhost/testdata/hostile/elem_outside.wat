;; An element segment that ends behind the end of the table. The runtime writes nothing of it,
;; and lets the module be: what it calls then is null, a trap, and nothing of the host's.
(module
  (type $f (func))
  (import "mg1" "subscribe" (func $subscribe (param i64) (result i32)))
  (memory (export "memory") 1)
  (table 2 funcref)
  (elem (i32.const 1) $f $f)
  (func $f (type $f))
  (func (export "mg1_init") (param i32) (result i64)
    (drop (call $subscribe (i64.const 0x60)))
    (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (call_indirect (type $f) (i32.const 1)) (i64.const 0)))
