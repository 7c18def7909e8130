;; A data segment that ends one octet behind the memory. The host writes segments itself and
;; must look where to.
(module
  (memory (export "memory") 1)
  (data (i32.const 65535) "ab")
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (i64.const 0)))
